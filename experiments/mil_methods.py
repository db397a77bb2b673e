"""MIL methods side by side on the same proposals: WSDDN, OICR and MIST, several seeds each.

    python -m experiments.mil_methods --data mini --runs runs/mini-0 runs/mini-1 runs/mini-2 \\
        --out runs/mil-methods

A seed's proposals and clues are those of its run (`--runs`, one a seed; its number is the seed of
the training, too). Everything else is the preset's. Writes OUT/table.json (all runs, with command
and commit) and OUT/table.md, and prints the table; finished trainings are not repeated.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import tyro

from experiments import measure
from experiments.settings import mini
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags, open_truth, split_names
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_json, write_json, write_text
from weaksam_jax.wsod.settings import WsodSettings


@dataclass(frozen=True)
class MilMethods:
    """Trains the MIL detector by several methods on the proposals of finished runs."""

    data: str
    """mini (the set that the first run wrote), or a data set with truth."""
    runs: tuple[Path, ...]
    """Run directories with proposals, one a seed, in the order 0, 1, 2, ..."""
    out: Path
    """Folder of the trainings and of the table."""
    methods: tuple[str, ...] = ("wsddn", "oicr", "mist")
    """In the order of the table's rows."""
    settings: WsodSettings = field(default_factory=lambda: mini().wsod)
    """Settings of every training, but for the method."""


def main(argv: Sequence[str] | None = None) -> None:
    options = tyro.cli(
        MilMethods, args=argv, description=__doc__, prog="python -m experiments.mil_methods"
    )
    rows = compare(options)
    print(table(rows))


def compare(options: MilMethods) -> list[dict]:
    """One dictionary a training: method, seed and the figures of `measure.wsod`."""
    from weaksam_jax.engine.mesh import data_mesh
    from weaksam_jax.wsod.detect import detect_wsod
    from weaksam_jax.wsod.train import train_wsod

    if not options.runs:
        raise BadInput("--runs", "is missing", "name at least one finished run")
    data = options.runs[0] / "data" / "VOC2007" if options.data == "mini" else options.data
    names = split_names(data)
    splits = {role: open_tags(data, name) for role, name in names.items()}
    truths = {role: open_truth(data, name) for role, name in names.items()}
    if None in truths.values():
        raise BadInput(data, "has no boxes to measure with", "give a data set with truth")
    rows = []
    for method in options.methods:
        settings = replace(options.settings, method=method)
        for seed, run in enumerate(options.runs):
            folder = options.out / f"{method}-{seed}"
            row = read_json(folder / "row.json") if (folder / "row.json").exists() else None
            if row is None or row["settings"] != plain(settings):
                print(f"{method}, seed {seed}: training in {folder}", file=sys.stderr)
                roots = run / "proposals", run / "clues"
                params = train_wsod(
                    splits["train"], roots[0], settings, folder, data_mesh(), seed, None, roots[1]
                )
                found = {
                    role: detect_wsod(
                        params, split, roots[0], settings, folder, clues_root=roots[1]
                    )
                    for role, split in splits.items()
                }
                figures = measure.wsod(found, splits, truths, roots[1])["wsod"]
                row = {"method": method, "seed": seed, **figures, "settings": plain(settings)}
                write_json(folder / "row.json", row, indent=1)
            rows.append(row)
    note = {"command": " ".join(sys.argv), "commit": commit(), "rows": rows}
    write_json(options.out / "table.json", note, indent=1)
    write_text(options.out / "table.md", table(rows) + "\n")
    return rows


def table(rows: Sequence[dict]) -> str:
    """Markdown: a row a method, mean and deviation over its seeds."""
    lines = ["| method | CorLoc (train) | AP50 (test) | AP50 of each seed |", "|---|---|---|---|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        each = ", ".join(f"{row['ap50']:.1f}" for row in own)
        cells = [spread([row[key] for row in own]) for key in ("corloc", "ap50")]
        lines.append(f"| {method} | {cells[0]} | {cells[1]} | {each} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean and, of several values, the deviation of the sample."""
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


def plain(settings: WsodSettings) -> dict:
    """The settings as JSON gives them back."""
    return json.loads(json.dumps(asdict(settings)))


def commit() -> str:
    """Short hash of the code's commit, "unknown" outside a repository."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(entry_point(main))
