"""Ablations of retraining: Tables 5 (pseudo boxes, drop), 9, 10 and 11 (what is dropped).

    python -m experiments.paper.ablation --table 5a --runs runs/mini-0 runs/mini-1 --out runs/tables
    python -m experiments.paper.ablation --table 9 --runs runs/mini-0 --seeds 0 1 2 \\
        --tau-reg 4 6 8 --tau-cls 3 4 5 --out runs/tables
    python -m experiments.paper.ablation --table 11 --runs runs/mini-0 --out runs/tables

Retrains on the detections of finished runs with their settings: Faster R-CNN in Tables 5a and 9,
DINO in 5b, 10 and 11 (the preset's where the run does not retrain it). Seed i takes the i-th run
(the first again when there are fewer), so that several runs vary the MIL detector, too. Table 5:
top-1, adaptive, adaptive with drop. Table 9: thresholds of RoI drop, one changed at a time; the
other is the run's; the paper's values (the defaults) are meant for a pre-trained R50: small
networks drop every foreground RoI at tau_reg 1. Table 10: query drop of nothing, of things, of
things and background. Table 11: its percentile.

Cells that differ in drop alone are the same until it begins, so they go on from a common training
(OUT/before_drop-SEED), and tables in the same OUT share what they can.

Writes OUT/table_5a.json (every cell, with command and commit), .md and .png, keeps the detections
of each cell, and prints the table and verdicts. Tables 5 and 10: the mean difference of paired
seeds is more than noise when its 95 % interval leaves 0 out, which three seeds grant to large
differences alone. Tables 9 and 11: Tukey's range test between the best and the worst.
The same command goes on where it stopped; finished cells are not repeated, those whose settings or
run have changed are.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.paper import ablation_rows as tables
from experiments.paper.ablation_cells import Cells
from experiments.paper.seed_tables import SeedRuns, Table, markdown, open_runs, run_cells
from experiments.pipeline.commands import run
from experiments.pipeline.config import PipelineConfig
from weaksam_jax.detectors.dino.loss_config import Percentile
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_text
from weaksam_jax.flags import parse
from weaksam_jax.outputs import OutFolder
from weaksam_jax.pgt import AnyRule
from weaksam_jax.ranges import Amount, Positive, Seed
from weaksam_jax.supervision import Permission

FIGURES = ("ap", "ap50")  # percent, on the test split
# Whose retraining a table is about.
DETECTOR = {"5a": "faster_rcnn", "9": "faster_rcnn", "5b": "dino", "10": "dino", "11": "dino"}


@dataclass(frozen=True)
class Ablation:
    """Retrains in several ways and seeds."""

    table: Literal["5a", "5b", "9", "10", "11"]
    """5a, 5b: top-1, adaptive, + drop; 9: thresholds; 10: queries dropped; 11: percentile."""
    runs: tuple[Path, ...]
    """Finished runs (their wsod stage at least) on a data set with truth, of the same settings."""
    out: OutFolder
    """Folder of the trainings and of the table."""
    data: str | None = None
    """The data set, if it has moved; mini: the set that the first run wrote [the first run's]."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Of the retraining."""
    schedule: Positive = 1.0
    """Of the run's retraining schedule (steps, milestones, start of the drop) this share."""
    rules: tuple[AnyRule, ...] = ()
    """Table 5: further rows without drop, pseudo boxes by these rules (own thresholds)."""
    tau_reg: tuple[Amount, ...] = (0.8, 1.0, 1.2)
    """Table 9: values of the box loss's threshold."""
    tau_cls: tuple[Amount, ...] = (3.0, 4.0, 5.0)
    """Table 9: values of the classification loss's threshold."""
    percentile: tuple[Percentile, ...] = (100.0, 90.0, 80.0)
    """Table 11: values of the percentile."""
    allow_supervision: tuple[Permission, ...] = ()
    """Start from weights that saw boxes or masks, or do not say (unknown), as a run may."""


def main(argv: Sequence[str] | None = None) -> None:
    print(ablate(parse(Ablation, argv, __doc__, name="paper.ablation")))


def ablate(options: Ablation) -> str:
    """Runs every cell; returns the table and the verdicts."""
    if not 0 < options.schedule <= 1:
        raise BadInput("--schedule", f"is {options.schedule:g}", "give a share from 0 to 1")
    allowed, kind = options.allow_supervision, DETECTOR[options.table]
    runs = open_runs(options.runs, options.seeds, options.data, allowed=allowed)
    check_alike(runs, kind)
    config = tables.shortened(tables.of_kind(runs.first, kind), options.schedule)
    methods = methods_of(options, config)
    tables.check_drop(methods)
    name, cells = f"table_{options.table}", Cells(runs, methods, options.out)
    table = Table(name, FIGURES, methods, seeds=runs.seeds, out=options.out)
    rows = run_cells(table, cells.work, cells.inputs)
    said = verdicts_of(options, methods, rows, config=config)
    notes = [*tables.setting_notes(config), *tables.supervision_notes(rows)]
    lines = [markdown(rows, FIGURES), "", *notes, "", *said]
    write_text(options.out / f"{name}.md", "\n".join(lines) + "\n")
    tables.draw(rows, options.out / f"{name}.png")
    return "\n".join(lines)


def check_alike(runs: SeedRuns, kind: str) -> None:
    """`BadInput` when settings that all rows share differ between the runs."""
    first = tables.of_kind(runs.first, kind)
    for one in runs.runs:
        same, own = (
            ("pgt", "retrain", "train_split", "test_split", "ap50"),
            tables.of_kind(one, kind),
        )
        if any(getattr(own, name) != getattr(first, name) for name in same):
            problem = f"has other settings of pgt or retrain than {runs.first.folder.root}"
            raise BadInput(one.folder.root, problem, "name runs that were made alike")


def methods_of(options: Ablation, config: PipelineConfig) -> dict[str, tables.Method]:
    """The rows of the table."""
    if options.table == "9":
        return tables.table_9(config, options.tau_reg, options.tau_cls)
    if options.table == "10":
        return tables.table_10(config)
    if options.table == "11":
        return tables.table_11(config, options.percentile)
    return tables.table_5(config, options.rules)


def verdicts_of(
    options: Ablation, methods: dict, rows: Sequence[dict], config: PipelineConfig
) -> list[str]:
    """What the table says."""
    found = {name: [row["ap50"] for row in rows if row["method"] == name] for name in methods}
    if options.table == "9":
        return tables.verdicts_9(found, methods, tables.drop_or_paper(config))
    if options.table == "10":
        return tables.verdicts_in_turn(found)
    if options.table == "11":
        return [tables.spread_verdict("percentile", found)] if len(found) > 1 else []
    return tables.verdicts_5(found)


if __name__ == "__main__":
    sys.exit(run("paper.ablation"))
