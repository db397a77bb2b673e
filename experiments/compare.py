"""Runs side by side: every figure of their metrics.json, the mean and the standard deviation.

    for seed in 0 1 2; do python -m experiments.voc07 --seed $seed --out runs/mini-$seed; done
    python -m experiments.compare runs/mini-0 runs/mini-1 runs/mini-2

Prints a Markdown table; a figure that a run does not have is a dash. Shares are in percent. The
last row says what supervision the weights had seen that the runs' detectors started from.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.pipeline.commands import run
from weaksam_jax.data.json_rows import shown
from weaksam_jax.errors import BadFile, BadInput, printable
from weaksam_jax.flags import parse
from weaksam_jax.report.artefacts import figures, is_number, numbers, part, read_object
from weaksam_jax.report.tables import KNOWN, flatten
from weaksam_jax.run_folder import RunFolder
from weaksam_jax.supervision import KINDS

_KEYS = [key for key, *_ in KNOWN]


@dataclass(frozen=True)
class Compare:
    """Figures of several runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Compare, argv, __doc__, name="compare")
    if not options.runs:
        raise BadInput("the command line", "no run was given", "name at least one run folder")
    metrics = [_metrics(one) for one in options.runs]
    print(table([printable(one.name) for one in options.runs], metrics))


def _metrics(root: Path) -> dict:
    """metrics.json of a run; a figure that is no number is refused, not taken for a missing one."""
    path = RunFolder(root).metrics
    if not path.exists():
        raise BadFile(path, "does not exist", "name the folder of a run that has finished a stage")
    content = read_object(path)
    for name, value in _leaves(content):
        if _concerns_table(name) and not (_is_figure(name) and is_number(value)):
            kind = "place for a figure" if is_number(value) else "finite number"
            problem = f"{name} is no {kind} ({shown(value)})"
            raise BadFile(path, problem, "give the folder of a run")
    return figures(content)


def _leaves(content: Mapping) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of all that is no object in nested objects, or an empty one."""
    waiting = [(str(key), value) for key, value in content.items()]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping) and value:
            waiting += [(f"{name}.{key}", inner) for key, inner in value.items()]
        elif value != {} or name in _KEYS:
            yield name, value


def _is_figure(name: str) -> bool:
    """Whether it is the name of a figure of the table, or of a stage's seconds."""
    group, _, stage = name.partition(".")
    return name in _KEYS or (group == "seconds" and "." not in stage and stage != "")


def _concerns_table(name: str) -> bool:
    """Whether such a figure has this name, or a name within it or around it."""
    names = [*_KEYS, "seconds"]
    return any(f"{one}.".startswith(f"{name}.") or name.startswith(f"{one}.") for one in names)


def table(names: Sequence[str], metrics: Sequence[Mapping]) -> str:
    """A Markdown table: a row for each figure of the report that some run has, and the minutes."""
    values = [dict(flatten(one)) for one in metrics]
    minutes = [sum(numbers(part(one, "seconds")).values()) / 60 for one in metrics]
    lines = [
        f"| figure | {' | '.join(names)} | mean ± deviation |",
        "|---" * (len(names) + 2) + "|",
    ]
    for key, name, _, kind in KNOWN:
        factor = 100 if kind == 1 else 1
        found = [one.get(key) for one in values]
        found = [factor * one if is_number(one) else None for one in found]
        if any(one is not None for one in found):
            lines.append(_row(name, found))
    lines.append(_row("Minutes of all stages", minutes))
    if any("supervision" in one for one in metrics):
        lines.append(f"| Detectors' starts had seen | {' | '.join(map(_seen, metrics))} | |")
    return "\n".join(lines)


def _seen(metrics: Mapping) -> str:
    """What the weights that a run's detectors started from had been trained on, and what of that
    was allowed; a dash without a ledger."""
    if "supervision" not in metrics:
        return "–"
    uses = part(metrics, "supervision").items()
    rows = [row for use, row in uses if re.fullmatch("(wsod|retrain).*_start", use)]
    rows = [row if isinstance(row, Mapping) else {"supervision": "?"} for row in rows]
    seen, allowed = (_kinds(rows, name) for name in ("supervision", "allowed"))
    return (seen or "nothing") + (f" (allowed: {allowed})" if allowed else "")


def _kinds(rows: Sequence[Mapping], name: str) -> str:
    """The kinds of supervision that the rows have there, each once; "unknown" for what is none."""
    words = {word for row in rows for word in str(row.get(name, "")).split(", ")} - {""}
    words |= set() if words <= set(KINDS) else {"unknown"}
    return ", ".join(one for one in KINDS if one in words)


def _row(name: str, found: Sequence[float | None]) -> str:
    numbers = [one for one in found if one is not None]
    cells = ["–" if one is None else f"{one:.1f}" for one in found]
    # The sample's deviation; a single run has none.
    spread = f" ± {np.std(numbers, ddof=1):.1f}" if len(numbers) > 1 else ""
    return f"| {name} | {' | '.join(cells)} | {np.mean(numbers):.1f}{spread} |"


if __name__ == "__main__":
    sys.exit(run("compare"))
