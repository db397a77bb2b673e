"""MIL methods side by side on the same proposals: WSDDN, OICR and MIST, several seeds each.

    python -m experiments.paper.mil_methods --data mini --runs runs/mini-0 runs/mini-1 runs/mini-2 \\
        --out runs/mil-methods

A seed's proposals and clues are those of its run (`--runs`, one a seed; its number is the seed of
the training, too). Everything else is the preset's. Writes OUT/table.json (all runs, with command
and commit) and OUT/table.md, and prints the table; finished trainings are not repeated, unless
their proposals have changed.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from experiments.paper.seed_tables import markdown, run_cells
from experiments.pipeline import metrics as measure
from experiments.pipeline.config import mini
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import dataset_fingerprint, open_tags, open_truth, split_names
from weaksam_jax.detectors.mil.config import WsodSettings
from weaksam_jax.errors import BadInput
from weaksam_jax.files import file_fingerprint

FIGURES = ("corloc", "ap50")  # percent, on the training and the test split


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
        MilMethods, args=argv, description=__doc__, prog="python -m experiments.paper.mil_methods"
    )
    print(markdown(compare(options), FIGURES))


def compare(options: MilMethods) -> list[dict]:
    """One dictionary a training: method, seed and the figures of `measure.wsod`."""
    from weaksam_jax.detectors.mil.detect import detect_wsod
    from weaksam_jax.detectors.mil.train import train_wsod
    from weaksam_jax.engine.mesh import data_mesh

    if not options.runs:
        raise BadInput("--runs", "is missing", "name at least one finished run")
    data = options.runs[0] / "data" / "VOC2007" if options.data == "mini" else options.data
    names = split_names(data)
    splits = {role: open_tags(data, name) for role, name in names.items()}
    truths = {role: open_truth(data, name) for role, name in names.items()}
    if None in truths.values():
        raise BadInput(data, "has no boxes to measure with", "give a data set with truth")

    def work(method: str, seed: int, folder: Path) -> dict:
        settings, run = methods[method], options.runs[seed]
        roots = run / "proposals", run / "clues"
        params = train_wsod(
            splits["train"], roots[0], settings, folder, data_mesh(), seed, None, roots[1]
        )
        found = {
            role: detect_wsod(params, split, roots[0], settings, folder, clues_root=roots[1])
            for role, split in splits.items()
        }
        return measure.wsod(found, splits, truths, roots[1])["wsod"]

    images = [dataset_fingerprint(data, name) for name in names.values()]

    def inputs(seed: int) -> list[str]:
        stores = [options.runs[seed] / "proposals" / name for name in names.values()]
        return [*images, *map(store_fingerprint, stores)]

    methods = {name: replace(options.settings, method=name) for name in options.methods}
    return run_cells(methods, range(len(options.runs)), options.out, work, FIGURES, inputs)


def store_fingerprint(store: Path) -> str:
    """Of the manifest of a split's proposals, which holds those of its networks and settings."""
    path = store / "manifest.json"
    if not path.exists():
        raise BadInput(path, "does not exist", "finish the run's stage proposals")
    return file_fingerprint(path)


if __name__ == "__main__":
    from weaksam_jax.engine.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    sys.exit(entry_point(main))
