"""Ablations of retraining: Table 5a (pseudo boxes, RoI drop) and Table 9 (its thresholds).

    python -m experiments.paper.ablation --table 5a --runs runs/mini-0 runs/mini-1 --out runs/tables
    python -m experiments.paper.ablation --table 9 --runs runs/mini-0 --seeds 0 1 2 \\
        --tau-reg 4 6 8 --tau-cls 3 4 5 --out runs/tables

Retrains on the detections of finished runs with their settings. Seed i takes the i-th run (the
first again when there are fewer), so that several runs vary the MIL detector, too. Table 5a: top-1,
adaptive, adaptive with RoI drop. Table 9: thresholds, one changed at a time; the other is the
run's. The paper's values (the defaults) are meant for a pre-trained R50: small networks drop every
foreground RoI at tau_reg 1.

Cells that differ in RoI drop alone are the same until it begins, so they go on from a common
training (OUT/before_drop-SEED), and both tables in the same OUT share what they can.

Writes OUT/table_5a.json (every cell, with command and commit), .md and .png, keeps the detections
of each cell, and prints the table and verdicts. Table 5a: the mean difference of paired seeds is
more than noise when its 95 % interval leaves 0 out, which three seeds grant to large differences
alone. Table 9: Tukey's range test between the best and the worst threshold.
The same command goes on where it stopped; finished cells are not repeated, those whose settings or
run have changed are.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from experiments.paper.seed_tables import markdown, open_folder, run_cells, spread_verdict, verdict
from experiments.pipeline import metrics as measure
from experiments.pipeline.config import RoadSettings
from experiments.pipeline.run import open_run
from experiments.pipeline.stages import Journey, retrain_start
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import dataset_fingerprint
from weaksam_jax.detectors.faster_rcnn.config import RetrainSettings
from weaksam_jax.detectors.faster_rcnn.loss import DropSettings
from weaksam_jax.errors import BadInput
from weaksam_jax.files import atomic_path, file_fingerprint, write_json, write_text
from weaksam_jax.pgt import AnyRule, PgtSettings

FIGURES = ("ap", "ap50")  # percent, on the test split


@dataclass(frozen=True)
class Ablation:
    """Retrains in several ways and seeds."""

    table: Literal["5a", "9"]
    """5a: top-1, adaptive, + RoI drop; 9: thresholds of RoI drop."""
    runs: tuple[Path, ...]
    """Finished runs (their wsod stage at least) on a data set with truth, of the same settings."""
    out: Path
    """Folder of the trainings and of the table."""
    data: str | None = None
    """The data set, if it has moved; mini: the set that the first run wrote [the first run's]."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the retraining."""
    schedule: float = 1.0
    """Of the run's retraining schedule (steps, milestones, start of RoI drop) this share."""
    rules: tuple[AnyRule, ...] = ()
    """Table 5a: further rows without RoI drop, pseudo boxes by these rules (own thresholds)."""
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
        Ablation, args=argv, description=__doc__, prog="python -m experiments.paper.ablation"
    )
    print(ablate(options))


def ablate(options: Ablation) -> str:
    """Runs every cell; returns the table and the verdicts."""
    from weaksam_jax.detectors.faster_rcnn.detect import detect_retrain
    from weaksam_jax.detectors.faster_rcnn.train import train_retrain

    check(options)
    journeys = open_runs(options)
    first = journeys[0]
    road, train, test = first.settings, first.splits["train"], first.splits["test"]
    truth = first.truths["test"]
    if truth is None:
        raise BadInput(first.data, "has no boxes to measure with", "give a run with truth")
    retrain, pgt = shortened(road.retrain, options.schedule), road.pgt.resolved()
    road = replace(road, pgt=pgt, retrain=retrain)
    methods = table_5a(road, options.rules) if options.table == "5a" else table_9(road, options)
    check_drop(methods)

    def journey_of(seed: int) -> Journey:
        return journeys[options.seeds.index(seed) % len(journeys)]

    images = [dataset_fingerprint(first.data, name) for name in first.names.values()]

    def inputs(seed: int) -> list[str]:
        return [*images, *weights_of(journey_of(seed))]

    def work(method: str, seed: int, folder: Path) -> dict:
        journey, settings = journey_of(seed), methods[method].retrain
        pgt = journey.pseudo_boxes(methods[method].pgt)
        init = retrain_start(journey.out, settings)

        def retrain(settings: RetrainSettings, folder: Path, until: int | None = None) -> dict:
            return train_retrain(pgt, train, settings, folder, journey.mesh, seed, init, until)

        until = common_steps(methods, method)
        if until and not (folder / "checkpoints").exists():
            plain, common = undropped(methods[method]), options.out / f"before_drop-{seed}"
            open_folder(common, [asdict(plain), until, seed, inputs(seed)])
            retrain(plain.retrain, common, until)
            copy_folder(common / "checkpoints", folder / "checkpoints")
        params = retrain(settings, folder)
        logits = None
        if settings.tag_power:
            from experiments.pipeline.clues import stored_logits

            logits = stored_logits(journey.clue_root, test)
        found = detect_retrain(params, test, settings, tag_logits=logits)
        write_json(folder / "detections_test.json", found)
        shutil.rmtree(folder / "checkpoints")
        return measure.average_precisions(found, truth)

    name = f"table_{options.table}"
    rows = run_cells(methods, options.seeds, options.out, work, FIGURES, inputs, name)
    found = {name: [row["ap50"] for row in rows if row["method"] == name] for name in methods}
    if options.table == "5a":
        said = verdicts_5a(found)
    else:
        said = verdicts_9(found, methods, road.retrain.drop or DropSettings())
    lines = [markdown(rows, FIGURES), "", *setting_notes(road), "", *said]
    write_text(options.out / f"{name}.md", "\n".join(lines) + "\n")
    draw(rows, options.out / f"{name}.png")
    return "\n".join(lines)


def check(options: Ablation) -> None:
    """`BadInput` for seeds and a schedule that make no table."""
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        problem = "names a seed twice" if options.seeds else "is empty"
        raise BadInput("--seeds", problem, "a verdict needs different trainings: give 0 1 2, say")
    if not 0 < options.schedule <= 1:
        raise BadInput("--schedule", f"is {options.schedule:g}", "give a share from 0 to 1")


def setting_notes(road: RoadSettings) -> list[str]:
    """What the rows have in common: settings that the paper has otherwise are to be seen."""
    pgt, drop, steps = road.pgt, road.retrain.drop or DropSettings(), road.retrain.steps
    return [
        f"adaptive: rule {pgt.rule}, tau_s {pgt.score_threshold:g}, tau_o "
        f"{pgt.overlap_threshold:g} (paper: 0.3, 0.85)",
        f"RoI drop: tau_cls {drop.tau_cls:g}, tau_reg {drop.tau_reg:g} (paper: 4, 1), rule "
        f"{drop.rule}, from step {drop.start} of {steps}",
    ]


def open_runs(options: Ablation) -> list[Journey]:
    """The runs, all with the first one's data set; `BadInput` when their settings differ."""
    if not options.runs:
        raise BadInput("--runs", "is missing", "name at least one finished run")
    first = open_run(options.runs[0], options.data)
    journeys = [first, *(open_run(run, str(first.data)) for run in options.runs[1:])]
    for journey in journeys:
        same = ("pgt", "retrain", "train_split", "test_split")
        if any(getattr(journey.settings, x) != getattr(first.settings, x) for x in same):
            problem = f"has other settings of pgt or retrain than {first.out}"
            raise BadInput(journey.out, problem, "name runs that were made alike")
    return journeys


def weights_of(journey: Journey) -> list[str]:
    """Fingerprints of what a cell reads of its run; `BadInput` when the MIL detector is missing."""
    paths = [journey.out / "wsod" / "detections_train.json"]
    paths.append(journey.out / "wsod" / "params.safetensors")
    if (init := journey.settings.retrain.init) is not None:
        paths.append(Path(init))
    for path in paths:
        if not path.exists():
            raise BadInput(path, "does not exist", "finish the run's stage wsod (or give weights)")
    return [file_fingerprint(path) for path in paths]


def shortened(settings: RetrainSettings, share: float) -> RetrainSettings:
    """The same schedule in `share` of the steps; the warm-up stays as it is."""

    def part(steps: int) -> int:
        return max(1, round(share * steps))

    drop = settings.drop and replace(settings.drop, start=part(settings.drop.start))
    milestones = tuple(map(part, settings.milestones))
    return replace(settings, steps=part(settings.steps), milestones=milestones, drop=drop)


def table_5a(road: RoadSettings, rules: Sequence[AnyRule] = ()) -> dict[str, Method]:
    """The rows of Table 5a with the run's settings, and one for each further rule."""
    plain = replace(road.retrain, drop=None)
    dropped = replace(road.retrain, drop=road.retrain.drop or DropSettings())
    return {
        "top-1": Method(replace(road.pgt, rule="top_k", k=1), plain),
        "adaptive": Method(road.pgt, plain),
        "adaptive + RoI drop": Method(road.pgt, dropped),
        **{f"rule {rule}": Method(PgtSettings(rule=rule).resolved(), plain) for rule in rules},
    }


def table_9(road: RoadSettings, options: Ablation) -> dict[str, Method]:
    """Rows "tau_reg x, tau_cls y": each threshold changed while the other is the run's."""
    drop = road.retrain.drop or DropSettings()
    changed = [replace(drop, tau_reg=value) for value in options.tau_reg]
    changed += [replace(drop, tau_cls=value) for value in options.tau_cls]
    return {
        f"tau_reg {one.tau_reg:g}, tau_cls {one.tau_cls:g}": Method(
            road.pgt, replace(road.retrain, drop=one)
        )
        for one in changed
    }


def undropped(method: Method) -> Method:
    """The method without RoI drop."""
    return replace(method, retrain=replace(method.retrain, drop=None))


def common_steps(methods: dict[str, Method], name: str) -> int:
    """Steps that a method has in common with the others that differ from it in RoI drop alone: all
    before the first drop begins; 0 when there are no others."""
    own = undropped(methods[name])
    group = [method.retrain.drop for method in methods.values() if undropped(method) == own]
    return min((drop.start for drop in group if drop is not None), default=0) * (len(group) > 1)


def copy_folder(source: Path, target: Path) -> None:
    """A copy that is whole or not there at all."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    partial.rename(target)


def check_drop(methods: dict[str, Method]) -> None:
    """`BadInput` for a RoI drop that would begin after the last step: a row equal to the other."""
    for name, method in methods.items():
        drop, steps = method.retrain.drop, method.retrain.steps
        if drop is not None and drop.start >= steps:
            problem = f"({name}) begins at step {drop.start} of {steps}: never"
            raise BadInput("RoI drop", problem, "give a run with an earlier retrain.drop.start")


def verdicts_5a(found: dict[str, list[float]]) -> list[str]:
    """What each row brought over the one before, a further rule over "adaptive". found: method ->
    AP50 of each seed."""
    pairs = [*pairwise(list(found)[:3]), *(("adaptive", rule) for rule in list(found)[3:])]
    return [verdict(f"{b} after {a}", found[b], found[a]) for a, b in pairs]


def verdicts_9(found: dict[str, list[float]], methods: dict[str, Method], base) -> list[str]:
    """Whether the values of a threshold differ, where the other one is that of `base`."""
    lines = []
    for kind, other in (("tau_reg", "tau_cls"), ("tau_cls", "tau_reg")):
        own = {
            name: found[name]
            for name, method in methods.items()
            if getattr(method.retrain.drop, other) == getattr(base, other)
        }
        if len(own) > 1:
            lines.append(spread_verdict(kind, own))
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
    crowded = len(names) > 3
    axis.set_xticks(range(len(names)), names, rotation=20 if crowded else 0)
    axis.set(ylabel="AP50 on the test split, %", title="every seed, and the mean")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


if __name__ == "__main__":
    from weaksam_jax.engine.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    sys.exit(entry_point(main))
