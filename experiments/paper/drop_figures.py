"""Do the losses of RoIs tell the wrong pseudo boxes? Figures 3 and 5 of the paper, measured.

    python -m experiments.paper.drop_figures --run runs/mini-0 --out runs/mini-0/drop
    python -m experiments.paper.drop_figures --run runs/mini-0 --at 200 400 1000 \\
        --out runs/mini-0/drop

Takes the pseudo boxes and settings of a finished run and, for the detector of that run or for one
that is trained anew without RoI drop as far as each step of --at, samples RoIs of every training
image as training does (unaugmented), with their classification and box losses. A foreground RoI is
an error when its pseudo box overlaps no true box (--same-class: of its class) by IoU >= 0.7. For
each interval of either loss: the number of RoIs and the share of errors. RoI drop helps where that
share rises with the loss; the table says how much of what a threshold drops is wrong.

Truth is read here, after training and for the figure alone. Writes OUT/drop.json and a picture a
detector. A training that was stopped goes on with the same command.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.paper.ablation_cells import train
from experiments.paper.roi_losses import (
    ERROR_IOU,
    Judge,
    Rois,
    intervals,
    sample_rois,
    summary,
    unaugmented,
)
from experiments.paper.seed_tables import open_folder, provenance
from experiments.pipeline.commands import run
from experiments.pipeline.run import Run, open_run
from weaksam_jax.data.datasets import dataset_fingerprint
from weaksam_jax.detectors import load_detector
from weaksam_jax.detectors.faster_rcnn import FasterRcnn
from weaksam_jax.engine.checkpoint import CHECKPOINTS
from weaksam_jax.engine.weights import load_params, save_params
from weaksam_jax.errors import BadInput
from weaksam_jax.files import atomic_path, file_fingerprint, fingerprint, read_json, write_json
from weaksam_jax.flags import parse
from weaksam_jax.locks import locked
from weaksam_jax.outputs import OutFolder
from weaksam_jax.ranges import Seed, Steps
from weaksam_jax.settings import change, to_plain


@dataclass(frozen=True)
class DropFigures:
    """Counts errors by loss."""

    run: Path
    """A finished run on a data set with truth."""
    out: OutFolder
    """Folder that is written."""
    data: str | None = None
    """The data set, if it has moved; mini: the set that the run wrote [the run's own]."""
    at: tuple[Steps, ...] = ()
    """Train anew without RoI drop and measure after so many steps [the run's own detector]."""
    seed: Seed = 0
    """Of that training and of the RoIs that are sampled."""
    same_class: bool = False
    """A true box of another class does not make a pseudo box right (the paper: it does)."""


def main(argv: Sequence[str] | None = None) -> None:
    for row in measure(parse(DropFigures, argv, __doc__, name="paper.drop_figures")):
        print(table(row))


def measure(options: DropFigures) -> list[dict]:
    """One dictionary per detector: its step (None: the run's own), intervals and thresholds."""
    opened = open_run(options.run, options.data)
    steps = opened.config.retrain.optim.steps
    if not all(0 < step <= steps for step in options.at):
        raise BadInput("--at", "is no step of the run", f"give steps from 1 to {steps}")
    judge = Judge(opened.data.truth("train"), options.same_class)
    pgt = read_json(opened.folder.pseudo_boxes())
    wanted = sorted(options.at) or (None,)
    note = {**provenance(), "error_iou": ERROR_IOU, "same_class": options.same_class}
    with locked(options.out, "paper", ("drop.json",)):
        rows = [_measure_one(options, opened, pgt, judge=judge, step=step) for step in wanted]
        write_json(options.out / "drop.json", {**note, "rows": rows}, indent=1)
    return rows


def _measure_one(
    options: DropFigures, opened: Run, pgt: dict, judge: Judge, step: int | None
) -> dict:
    """The row of one detector; draws its picture."""
    config, split = opened.config.retrain, opened.data.splits["train"]
    if step is None:
        _, params = load_detector(opened.folder.weights("retrain"))
    else:
        params = train_until(options, pgt, opened, step=step)
    samples = unaugmented(pgt, split, config)
    detector = FasterRcnn(config, split.classes)
    rois = sample_rois(detector, params, samples, judge=judge, seed=options.seed)
    draw(rois, options.out / f"drop{'' if step is None else f'_{step}'}.png", step)
    return {"step": step, **summary(rois, config)}


def train_until(options: DropFigures, pgt: dict, opened: Run, step: int) -> dict:
    """The detector after `step` steps of the run's schedule without RoI drop; resumes."""
    config = change(opened.config.retrain, {"loss.drop": None})
    folder = options.out / "training"
    images = dataset_fingerprint(opened.data.path, opened.data.names["train"])
    start = opened.folder.weights("wsod")
    made_of = [images, file_fingerprint(start) if start.exists() else None]
    open_folder(folder, [to_plain(config), options.seed, fingerprint(pgt), made_of])
    stored, checkpoints = folder / f"params_{step}.safetensors", folder / CHECKPOINTS
    if stored.exists():
        return load_params(stored)
    if any(int(one.name) > step for one in checkpoints.glob("[0-9]*")):
        shutil.rmtree(checkpoints)  # went on past this step, and kept nothing of it
    params = train(opened, pgt, config, folder=folder, seed=options.seed, until=step)
    save_params(stored, params)
    return params


def table(row: dict) -> str:
    """The summary as text."""
    where = "the run's detector" if row["step"] is None else f"after {row['step']} steps"
    lines = [f"{where}: {row['rois']} foreground RoIs, {_percent(row['errors'])} % errors"]
    lines.append(
        f"{'loss from':>10} {'cls RoIs':>9} {'errors %':>9} {'reg RoIs':>9} {'errors %':>9}"
    )
    for cls, reg in zip(row["cls"], row["reg"], strict=True):
        cells = [f"{one['rois']:9} {_percent(one['errors']):>9}" for one in (cls, reg)]
        lines.append(f"{cls['from']:10.2f} {cells[0]} {cells[1]}")
    gone, kept = _percent(row["errors_of_dropped"]), _percent(row["errors_of_kept"])
    lines.append(
        f"tau_cls {row['tau_cls']:g}, tau_reg {row['tau_reg']:g}, {row['rule']}: "
        f"{_percent(row['dropped'])} % dropped, of which {gone} % are errors, of those kept "
        f"{kept} %"
    )
    share = _percent(row["dropped_background"])
    lines.append(f"of {row['background_rois']} background RoIs {share} % dropped")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "    -" if value is None else f"{100 * value:5.1f}"


def draw(rois: Rois, path: Path, step: int | None) -> None:
    """Bars: number of RoIs of each interval; line: share of errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    titles = {"cls": "classification loss", "reg": "box loss (L1)"}
    for axis, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        _draw_loss(axis, intervals(getattr(rois, name), rois.wrong), title)
    figure.suptitle(
        "the run's detector" if step is None else f"after {step} steps without RoI drop"
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_loss(axis, rows: Sequence[dict], title: str) -> None:
    x = range(len(rows))
    axis.bar(x, [row["rois"] for row in rows], color="tab:blue", alpha=0.6)
    axis.set_xticks(x, [f"{row['from']:g}" for row in rows])
    axis.set(xlabel=f"{title} from", ylabel="foreground RoIs")
    right = axis.twinx()
    share = [np.nan if row["errors"] is None else 100 * row["errors"] for row in rows]
    right.plot(x, share, "o-", color="tab:red")
    right.set(ylim=(0, 100), ylabel="of them with a wrong pseudo box, %")


if __name__ == "__main__":
    sys.exit(run("paper.drop_figures"))
