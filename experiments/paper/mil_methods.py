"""MIL methods side by side on the same proposals: WSDDN, OICR and MIST, several seeds each.

    python -m experiments.paper.mil_methods --runs runs/mini-0 runs/mini-1 runs/mini-2 \\
        --out runs/mil-methods

Seed i takes the proposals and clues of the i-th run (the first again when there are fewer).
Everything else is the mini preset's. Writes OUT/table.json (every cell, with command and commit)
and OUT/table.md, and prints the table; finished trainings are not repeated, unless their proposals
have changed.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.paper.seed_tables import SeedRuns, Table, markdown, open_runs, run_cells
from experiments.pipeline import detectors
from experiments.pipeline import metrics as measure
from experiments.pipeline.commands import run
from experiments.pipeline.detectors import MilConfig, MilInputs, mil_preset
from weaksam_jax.detectors.mil import MilDetector
from weaksam_jax.errors import BadFile
from weaksam_jax.files import file_fingerprint
from weaksam_jax.flags import parse
from weaksam_jax.outputs import OutFolder
from weaksam_jax.ranges import Seed
from weaksam_jax.settings import change

FIGURES = ("corloc", "ap50")  # percent, on the training and the test split


@dataclass(frozen=True)
class MilMethods:
    """Trains the MIL detector by several methods on the proposals of finished runs."""

    runs: tuple[Path, ...]
    """Runs with proposals, on a data set with truth."""
    out: OutFolder
    """Folder of the trainings and of the table."""
    data: str | None = None
    """The data set, if it has moved; mini: the set that the first run wrote [the first run's]."""
    seeds: tuple[Seed, ...] | None = None
    """Of the trainings [0, 1, ..., one for each run]."""
    methods: tuple[str, ...] = ("wsddn", "oicr", "mist")
    """In the order of the table's rows."""
    config: MilConfig = field(default_factory=lambda: mil_preset("mini"))
    """Of every detector, but for its method."""


def main(argv: Sequence[str] | None = None) -> None:
    print(markdown(compare(parse(MilMethods, argv, __doc__, name="paper.mil_methods")), FIGURES))


def compare(options: MilMethods) -> list[dict]:
    """One dictionary per training: method, seed and the figures of `measure.wsod`."""
    runs = open_runs(options.runs, options.seeds, options.data)
    runs.first.data.truth("train")
    methods = {name: change(options.config, {"model.method": name}) for name in options.methods}
    cells = Cells(runs, methods)
    table = Table("table", FIGURES, methods, seeds=runs.seeds, out=options.out)
    return run_cells(table, cells.work, cells.inputs)


@dataclass(frozen=True)
class Cells:
    """The work of every cell; see `experiments.paper.seed_tables.run_cells`."""

    runs: SeedRuns
    methods: dict[str, MilConfig]

    def inputs(self, seed: int) -> list[str]:
        """Fingerprints of what a cell reads."""
        names = self.runs.first.data.names.values()
        stores = [self.runs.of(seed).proposals / name for name in names]
        return [*self.runs.images(), *map(store_fingerprint, stores)]

    def work(self, name: str, seed: int, folder: Path) -> dict:
        """Trains, detects on both splits and measures."""
        run, data = self.runs.of(seed), self.runs.first.data
        train, inputs = data.splits["train"], MilInputs(run.proposals, run.clues)
        detector = MilDetector(self.methods[name], train.classes)
        params = detectors.train_mil(detector, train, inputs, folder=folder, seed=seed)
        found = {
            role: detectors.detect_mil(detector, params, split, inputs=inputs, folder=folder)
            for role, split in data.splits.items()
        }
        figures = measure.wsod(
            found, data.splits, data.truths, clue_root=run.clues, rule=run.config.ap50
        )
        return figures["wsod"]


def store_fingerprint(store: Path) -> str:
    """Of the manifest of a split's proposals, which holds those of its networks and settings."""
    path = store / "manifest.json"
    if not path.exists():
        raise BadFile(path, "does not exist", "finish the run's stage proposals")
    return file_fingerprint(path)


if __name__ == "__main__":
    sys.exit(run("paper.mil_methods"))
