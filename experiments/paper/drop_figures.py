"""Do the losses of RoIs and queries tell the wrong pseudo boxes? Figures 3 and 5, measured.

    python -m experiments.paper.drop_figures --run runs/mini-0 --out runs/mini-0/drop
    python -m experiments.paper.drop_figures --run runs/mini-0 --at 200 400 1000 \\
        --out runs/mini-0/drop
    python -m experiments.paper.drop_figures --run runs/mini-0 --detector dino --out runs/dino-drop

Takes the pseudo boxes and settings of a finished run and, for the detector of that run or for one
that is trained anew without drop as far as each step of --at, samples RoIs of every training
image as training does (unaugmented), with their classification and box losses. A foreground RoI is
an error when its pseudo box overlaps no true box (--same-class: of its class) by IoU >= 0.7. For
each interval of either loss: the number of RoIs and the share of errors. RoI drop helps where that
share rises with the loss; the table says how much of what a threshold drops is wrong.

Of a DINO: the queries of its last layer that are matched to a pseudo box, by their unweighted
classification loss, their L1 loss, and their rank in the batch, by which query drop chooses.

Truth is read here, after training and for the figure alone. Writes OUT/drop.json and a picture a
detector. A training that was stopped goes on with the same command.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.paper import query_losses, roi_losses
from experiments.paper.ablation_cells import start_files, train
from experiments.paper.loss_report import draw, table
from experiments.paper.roi_losses import ERROR_IOU, Judge, unaugmented
from experiments.paper.seed_tables import open_folder, permitting, provenance
from experiments.pipeline import ledger
from experiments.pipeline.commands import run
from experiments.pipeline.detectors import RetrainConfig, retrain_kinds, retrainer
from experiments.pipeline.run import Run, open_run
from weaksam_jax.data.datasets import dataset_fingerprint
from weaksam_jax.detectors import load_detector
from weaksam_jax.detectors.dino import Dino
from weaksam_jax.engine.checkpoint import CHECKPOINTS
from weaksam_jax.engine.weights import load_params, save_params
from weaksam_jax.errors import BadInput
from weaksam_jax.files import file_fingerprint, fingerprint, read_json, write_json
from weaksam_jax.flags import parse
from weaksam_jax.locks import locked
from weaksam_jax.outputs import OutFolder
from weaksam_jax.photos import retrained_stage
from weaksam_jax.ranges import Seed, Steps
from weaksam_jax.settings import change, to_plain
from weaksam_jax.supervision import Permission


@dataclass(frozen=True)
class DropFigures:
    """Counts errors by loss."""

    run: Path
    """A finished run on a data set with truth."""
    out: OutFolder
    """Folder that is written."""
    data: str | None = None
    """The data set, if it has moved; mini: the set that the run wrote [the run's own]."""
    detector: str | None = None
    """faster_rcnn or dino, of several that the run retrained [the first of its --retrain]."""
    at: tuple[Steps, ...] = ()
    """Train anew without drop and measure after so many steps [the run's own detector]."""
    seed: Seed = 0
    """Of that training and of the RoIs that are sampled."""
    same_class: bool = False
    """A true box of another class does not make a pseudo box right (the paper: it does)."""
    allow_supervision: tuple[Permission, ...] = ()
    """Start from weights that saw boxes or masks, or do not say (unknown), as a run may."""


def main(argv: Sequence[str] | None = None) -> None:
    for row in measure(parse(DropFigures, argv, __doc__, name="paper.drop_figures")):
        print(table(row))


def measure(options: DropFigures) -> list[dict]:
    """One dictionary per detector: its step (None: the run's own), intervals and thresholds."""
    opened = permitting(open_run(options.run, options.data), options.allow_supervision)
    config = config_of(opened, options.detector)
    steps = config.optim.steps
    if not all(0 < step <= steps for step in options.at):
        raise BadInput("--at", "is no step of the run", f"give steps from 1 to {steps}")
    judge = Judge(opened.data.truth("train"), options.same_class)
    pgt = read_json(opened.folder.pseudo_boxes())
    wanted = sorted(options.at) or (None,)
    note = {**provenance(), "error_iou": ERROR_IOU, "same_class": options.same_class}
    with locked(options.out, "paper", ("drop.json",)):
        work = _Work(options, opened, pgt, config=config, judge=judge)
        rows = [_measure_one(work, step) for step in wanted]
        write_json(options.out / "drop.json", {**note, "rows": rows}, indent=1)
    return rows


def config_of(opened: Run, detector: str | None) -> RetrainConfig:
    """The run's settings of that detector: of the first (None), or of a row of `RETRAINERS`."""
    if detector is None:
        return opened.config.retrain
    for stage, kind in retrain_kinds(opened.options.retrain).items():
        if kind == detector:
            return opened.retrainings[stage]
    problem = f"{detector} is not retrained by the run ({opened.options.retrain})"
    raise BadInput("--detector", problem, "name one that is")


@dataclass(frozen=True)
class _Work:
    """What is measured."""

    options: DropFigures
    opened: Run
    pgt: dict
    config: RetrainConfig
    judge: Judge


def _measure_one(work: _Work, step: int | None) -> dict:
    """The row of one detector; draws its picture."""
    options, opened, config = work.options, work.opened, work.config
    split = opened.data.splits["train"]
    if step is None:
        stage = retrained_stage(opened.folder, options.detector)
        _, params = load_detector(opened.folder.weights(stage))
        seen = {"detector": ledger.of_detector(opened, stage)}
    else:
        params = train_until(work, step)
        seen = {"started_from": ledger.retrained_from(opened, config)}
    samples = unaugmented(work.pgt, split, config)
    detector = retrainer(config, split.classes)
    losses = query_losses if isinstance(detector, Dino) else roi_losses
    found = losses.sample(detector, params, samples, judge=work.judge, seed=options.seed)
    row = {"step": step, **seen, **losses.summary(found, config)}
    draw(row, options.out / f"drop{'' if step is None else f'_{step}'}.png")
    return row


def train_until(work: _Work, step: int) -> dict:
    """The detector after `step` steps of the run's schedule without drop; resumes."""
    options, opened, pgt = work.options, work.opened, work.pgt
    config = change(work.config, {"loss.drop": None})
    folder = options.out / "training"
    images = dataset_fingerprint(opened.data.path, opened.data.names["train"])
    wsod, *given = start_files(opened, config)
    made_of = [images, file_fingerprint(wsod) if wsod.exists() else None]
    made_of += map(file_fingerprint, given)
    open_folder(folder, [to_plain(config), options.seed, fingerprint(pgt), made_of])
    stored, checkpoints = folder / f"params_{step}.safetensors", folder / CHECKPOINTS
    if stored.exists():
        return load_params(stored)
    if any(int(one.name) > step for one in checkpoints.glob("[0-9]*")):
        shutil.rmtree(checkpoints)  # went on past this step, and kept nothing of it
    params = train(opened, pgt, config, folder=folder, seed=options.seed, until=step)
    save_params(stored, params)
    return params


if __name__ == "__main__":
    sys.exit(run("paper.drop_figures"))
