"""Runs side by side: every figure of their metrics.json, the mean and the standard deviation.

    for seed in 0 1 2; do python -m experiments.voc07 --seed $seed --out runs/mini-$seed; done
    python -m experiments.compare runs/mini-0 runs/mini-1 runs/mini-2

Prints a Markdown table; a figure that a run does not have is a dash. Shares are in percent.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from experiments.pipeline.commands import run
from weaksam_jax.data.json_rows import as_number
from weaksam_jax.errors import BadFile, BadInput, printable
from weaksam_jax.files import read_json
from weaksam_jax.flags import parse
from weaksam_jax.report.tables import KNOWN, flatten
from weaksam_jax.run_folder import RunFolder


@dataclass(frozen=True)
class Compare:
    """Figures of several runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Compare, argv, __doc__, name="compare")
    if not options.runs:
        raise BadInput("the command line", "no run was given", "name at least one run folder")
    metrics = [read_metrics(RunFolder(one).metrics) for one in options.runs]
    print(table([printable(one.name) for one in options.runs], metrics))


def read_metrics(path: Path) -> dict:
    """A run's metrics.json; `BadFile` when it is no object, or holds a figure that is no number."""
    hint, metrics = "give the folder of a run", read_json(path)
    if not isinstance(metrics, dict) or not isinstance(metrics.get("seconds", {}), dict):
        raise BadFile(path, "is no metrics.json of a run", hint)
    values = dict(flatten(metrics))
    figures = {key: values[key] for key, *_ in KNOWN if key in values}
    figures |= {key: value for key, value in values.items() if key.startswith("seconds.")}
    for key, value in figures.items():
        try:
            as_number(value)
        except ValueError as error:
            raise BadFile(path, f"{key} {error}", hint) from error
    return metrics


def table(names: Sequence[str], metrics: Sequence[Mapping]) -> str:
    """A Markdown table: a row for each figure of the report that some run has, and the minutes."""
    values = [dict(flatten(one)) for one in metrics]
    minutes = [sum(map(as_number, one.get("seconds", {}).values())) / 60 for one in metrics]
    lines = [
        f"| figure | {' | '.join(names)} | mean ± deviation |",
        "|---" * (len(names) + 2) + "|",
    ]
    for key, name, _, kind in KNOWN:
        factor = 100 if kind == 1 else 1
        found = [one.get(key) for one in values]
        found = [None if one is None else factor * as_number(one) for one in found]
        if any(one is not None for one in found):
            lines.append(_row(name, found))
    return "\n".join([*lines, _row("Minutes of all stages", minutes)])


def _row(name: str, found: Sequence[float | None]) -> str:
    numbers = [one for one in found if one is not None]
    cells = ["–" if one is None else f"{one:.1f}" for one in found]
    # The sample's deviation; a single run has none.
    spread = f" ± {np.std(numbers, ddof=1):.1f}" if len(numbers) > 1 else ""
    return f"| {name} | {' | '.join(cells)} | {np.mean(numbers):.1f}{spread} |"


if __name__ == "__main__":
    sys.exit(run("compare"))
