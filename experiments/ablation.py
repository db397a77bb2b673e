"""Ablations of retraining: Table 5a (pseudo boxes, RoI drop) and Table 9 (its thresholds).

    python -m experiments.ablation --table 5a --runs runs/mini-0 runs/mini-1 --out runs/5a
    python -m experiments.ablation --table 9 --runs runs/mini-0 --seeds 0 1 2 \\
        --tau-reg 4 6 8 --tau-cls 3 4 5 --out runs/9

Retrains on the detections of finished runs with their settings. Seed i takes the i-th run (the
first again when there are fewer), so that several runs vary the MIL detector, too. Table 5a: top-1,
adaptive, adaptive with RoI drop. Table 9: thresholds, one changed at a time; the other is the
run's. Writes OUT/table.json (every cell, with command and commit), OUT/table.md and OUT/table.png,
and prints the table and a verdict: the mean difference of paired seeds against its standard error.
Finished cells are not repeated.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from experiments import measure
from experiments.seed_tables import markdown, run_cells, verdict
from experiments.settings import RoadSettings, restore
from experiments.stages import retrain_start
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags, open_truth, split_names
from weaksam_jax.errors import BadInput
from weaksam_jax.files import atomic_path, read_json, write_text
from weaksam_jax.losses.detection import DropSettings
from weaksam_jax.pgt import PgtSettings
from weaksam_jax.retrain.settings import RetrainSettings

FIGURES = ("ap", "ap50")  # percent, on the test split


@dataclass(frozen=True)
class Ablation:
    """Retrains in several ways and seeds."""

    table: Literal["5a", "9"]
    """5a: top-1, adaptive, + RoI drop; 9: thresholds of RoI drop."""
    runs: tuple[Path, ...]
    """Finished runs (their wsod stage at least) on a data set with truth."""
    out: Path
    """Folder of the trainings and of the table."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the retraining."""
    tau_reg: tuple[float, ...] = (0.8, 1.0, 1.2)
    """Table 9: values of the box loss's threshold."""
    tau_cls: tuple[float, ...] = (3.0, 4.0, 5.0)
    """Table 9: values of the classification loss's threshold."""


@dataclass(frozen=True)
class Method:
    """One row: how pseudo boxes are made and the detector is retrained."""

    pgt: PgtSettings
    retrain: RetrainSettings


def main(argv: Sequence[str] | None = None) -> None:
    options = tyro.cli(
        Ablation, args=argv, description=__doc__, prog="python -m experiments.ablation"
    )
    print(ablate(options))


def ablate(options: Ablation) -> str:
    """Runs every cell; returns the table and the verdicts."""
    from weaksam_jax.engine.mesh import data_mesh
    from weaksam_jax.pgt import make_pgt
    from weaksam_jax.retrain.detect import detect_retrain
    from weaksam_jax.retrain.train import train_retrain

    if not options.runs:
        raise BadInput("--runs", "is missing", "name at least one finished run")
    stored = read_json(options.runs[0] / "settings.json")
    road = restore(RoadSettings, stored["settings"])
    names = split_names(stored["data"])
    train = open_tags(stored["data"], road.train_split or names["train"])
    test = open_tags(stored["data"], road.test_split or names["test"])
    truth = open_truth(stored["data"], test.split)
    if truth is None:
        raise BadInput(stored["data"], "has no boxes to measure with", "give a run with truth")
    methods = table_5a(road) if options.table == "5a" else table_9(road, options)

    def work(method: str, seed: int, folder: Path) -> dict:
        run = options.runs[options.seeds.index(seed) % len(options.runs)]
        settings = methods[method].retrain
        detections = read_json(run / "wsod" / "detections_train.json")
        pgt = make_pgt(detections, train, methods[method].pgt)
        start = retrain_start(run, settings)
        params = train_retrain(pgt, train, settings, folder, data_mesh(), seed, start)
        logits = None
        if settings.tag_power:
            from experiments.clues import stored_logits

            logits = stored_logits(run / "clues", test)
        found = detect_retrain(params, test, settings, tag_logits=logits)
        return measure.average_precisions(found, truth)

    rows = run_cells(methods, options.seeds, options.out, work, FIGURES)
    lines = [markdown(rows, FIGURES), "", *verdicts(rows, options.table)]
    write_text(options.out / "table.md", "\n".join(lines) + "\n")
    draw(rows, options.out / "table.png")
    return "\n".join(lines)


def table_5a(road: RoadSettings) -> dict[str, Method]:
    """The rows of Table 5a with the run's settings."""
    plain = replace(road.retrain, drop=None)
    dropped = replace(road.retrain, drop=road.retrain.drop or DropSettings())
    return {
        "top-1": Method(replace(road.pgt, rule="top_k"), plain),
        "adaptive": Method(road.pgt, plain),
        "adaptive + RoI drop": Method(road.pgt, dropped),
    }


def table_9(road: RoadSettings, options: Ablation) -> dict[str, Method]:
    """Rows "tau_reg x" and "tau_cls x"."""
    drop = road.retrain.drop or DropSettings()
    changed = {f"tau_reg {value:g}": replace(drop, tau_reg=value) for value in options.tau_reg}
    changed |= {f"tau_cls {value:g}": replace(drop, tau_cls=value) for value in options.tau_cls}
    return {
        name: Method(road.pgt, replace(road.retrain, drop=one)) for name, one in changed.items()
    }


def verdicts(rows: Sequence[dict], table: str) -> list[str]:
    """What each step of Table 5a brought; of Table 9 the best of each threshold against the
    others' mean."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["method"], []).append(row["ap50"])
    names = list(found)
    if table == "5a":
        return [verdict(b, found[b], found[a]) for a, b in pairwise(names)]
    lines = []
    for kind in ("tau_reg", "tau_cls"):
        own = [name for name in names if name.startswith(kind)]
        best = max(own, key=lambda name: np.mean(found[name]), default=None)
        rest = [found[name] for name in own if name != best]
        if rest:
            lines.append(verdict(f"{best} over the others", found[best], np.mean(rest, axis=0)))
    return lines


def draw(rows: Sequence[dict], path: Path) -> None:
    """AP50 of every seed and the mean of each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axis, names = figure.subplots(), list(dict.fromkeys(row["method"] for row in rows))
    for place, name in enumerate(names):
        values = [row["ap50"] for row in rows if row["method"] == name]
        axis.plot([place] * len(values), values, "o", color="tab:blue", alpha=0.6)
        axis.plot(place, np.mean(values), "_", color="tab:red", markersize=30)
    axis.set_xticks(range(len(names)), names)
    axis.set(ylabel="AP50 on the test split, %", title="every seed, and the mean")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


if __name__ == "__main__":
    from weaksam_jax.engine.programs import keep_programs

    keep_programs()
    sys.exit(entry_point(main))
