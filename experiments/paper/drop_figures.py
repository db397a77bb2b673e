"""Do the losses of RoIs tell the wrong pseudo boxes? Figures 3 and 5 of the paper, measured.

    python -m experiments.paper.drop_figures --run runs/mini-0 --out runs/mini-0/drop
    python -m experiments.paper.drop_figures --run runs/mini-0 --at 200 400 1000 --out runs/mini-0/drop

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from experiments.paper.seed_tables import commit, open_folder, plain
from experiments.pipeline.run import open_run
from experiments.pipeline.stages import Journey, retrain_start
from weaksam_jax.boxes import iou
from weaksam_jax.cli import entry_point
from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.detectors.faster_rcnn.config import RetrainSettings
from weaksam_jax.errors import BadInput
from weaksam_jax.files import fingerprint, read_arrays, read_json, write_json

ERROR_IOU = 0.7
EDGES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # the last interval is open


@dataclass(frozen=True)
class DropFigures:
    """Counts errors by loss."""

    run: Path
    """A finished run on a data set with truth."""
    out: Path
    """Folder that is written."""
    data: str | None = None
    """The data set, if it has moved; mini: the set that the run wrote [the run's own]."""
    at: tuple[int, ...] = ()
    """Train anew without RoI drop and measure after so many steps [the run's own detector]."""
    seed: int = 0
    """Of that training and of the RoIs that are sampled."""
    same_class: bool = False
    """A true box of another class does not make a pseudo box right (the paper: it does)."""


@dataclass(frozen=True)
class Rois:
    """Foreground RoIs of all images: losses float32 `[R]`, whether their box is wrong, bool `[R]`;
    cls_background: losses of the background ones."""

    cls: np.ndarray
    reg: np.ndarray
    wrong: np.ndarray
    cls_background: np.ndarray


def main(argv: Sequence[str] | None = None) -> None:
    options = tyro.cli(
        DropFigures, args=argv, description=__doc__, prog="python -m experiments.paper.drop_figures"
    )
    for row in measure(options):
        print(table(row))


def measure(options: DropFigures) -> list[dict]:
    """One dictionary a detector: its step (None: the run's own), intervals and thresholds."""
    from weaksam_jax.detectors.faster_rcnn.network import build_model, detector_params

    journey = open_run(options.run, options.data)
    settings, pgt = journey.settings.retrain, read_json(options.run / "pgt" / "pgt.json")
    if not all(0 < step <= settings.steps for step in options.at):
        raise BadInput("--at", "is no step of the run", f"give steps from 1 to {settings.steps}")
    truth = journey.truths["train"]
    if truth is None:
        hint = "give a run on a set with truth"
        raise BadInput(journey.data, "has no boxes to judge with", hint)
    rows = []
    for step in sorted(options.at) or (None,):
        if step is None:
            path = options.run / "retrain" / "params.safetensors"
            model = build_model(settings, len(journey.splits["train"].classes))
            params = detector_params(model, settings.scales[0][0], read_arrays(path)[0], path)
        else:
            params = train_until(options, pgt, journey, step)
        split, same = journey.splits["train"], options.same_class
        rois = judge(params, pgt, split, truth, settings, options.seed, same)
        rows.append({"step": step, **summary(rois, settings)})
        draw(rois, options.out / f"drop{'' if step is None else f'_{step}'}.png", step)
    note = {"command": " ".join(sys.argv), "commit": commit(), "error_iou": ERROR_IOU}
    note |= {"same_class": options.same_class}
    write_json(options.out / "drop.json", {**note, "rows": rows}, indent=1)
    return rows


def train_until(options: DropFigures, pgt: dict, journey: Journey, step: int) -> dict:
    """The detector after `step` steps of the run's schedule without RoI drop; resumes."""
    from weaksam_jax.detectors.faster_rcnn.train import train_retrain

    from weaksam_jax.engine.checkpoint import load_params, save_params

    settings = replace(journey.settings.retrain, drop=None)
    folder, start = options.out / "training", retrain_start(options.run, settings)
    open_folder(folder, [plain(settings), options.seed, fingerprint(pgt)])
    stored, checkpoints = folder / f"params_{step}.safetensors", folder / "checkpoints"
    if stored.exists():
        return load_params(stored)
    if any(int(one.name) > step for one in checkpoints.glob("[0-9]*")):
        shutil.rmtree(checkpoints)  # went on past this step, and kept nothing of it
    train, mesh = journey.splits["train"], journey.mesh
    params = train_retrain(pgt, train, settings, folder, mesh, options.seed, start, until=step)
    save_params(stored, params)
    return params


def judge(
    params: dict,
    pgt: dict,
    split: TagSplit,
    truth: TruthSplit,
    settings: RetrainSettings,
    seed: int,
    same_class: bool = False,
) -> Rois:
    """Samples the RoIs of every image with pseudo boxes and holds their boxes against the truth."""
    import jax
    from weaksam_jax.detectors.faster_rcnn.network import build_model, normalise

    from weaksam_jax.data.pseudo_boxes import Augmentation, PseudoSamples
    from weaksam_jax.detectors.faster_rcnn.loss import sampled_roi_losses

    samples = PseudoSamples(pgt, split, settings.scales[-1:], Augmentation(flip=0.0))
    model = build_model(settings, len(split.classes))

    @jax.jit
    def losses(params, batch, key):
        image = normalise(batch["image"], batch["size"], settings.backbone)
        return sampled_roi_losses(model, params, batch | {"image": image}, key, settings.detection)

    params, key = jax.device_put(params), jax.random.key(seed)
    records = {record.image_id: record for record in truth.records}
    found: list[tuple] = []
    for number, batch in enumerate(batches(samples, settings.batch)):
        ids = batch.pop("image_id")
        rois = jax.device_get(losses(params, batch, jax.random.fold_in(key, number)))
        for row in range(len(np.unique(ids))):  # a last batch repeats its first image
            record, valid = records[int(ids[row])], rois.valid[row]
            own = rois.foreground[row] & valid
            size = batch["size"][row]
            factor = np.asarray([record.width / size[1], record.height / size[0]] * 2)
            boxes = rois.targets[row][own] * factor
            right = iou(boxes, record.boxes.astype(np.float64)) >= ERROR_IOU
            if same_class:
                right &= record.labels[None, :] == rois.labels[row][own][:, None]
            wrong = ~right.any(1)
            rest = rois.cls[row][valid & ~own]
            found.append((rois.cls[row][own], rois.reg[row][own], wrong, rest))
    return Rois(*(np.concatenate(column) for column in zip(*found, strict=True)))


def batches(samples, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every sample once, `size` of one canvas at a time; a last batch repeats its first."""
    rng = np.random.default_rng(0)
    for group in sorted(set(samples.groups)):
        members = [i for i, own in enumerate(samples.groups) if own == group]
        for start in range(0, len(members), size):
            chosen = members[start : start + size]
            chosen += chosen[:1] * (size - len(chosen))
            shown = [samples(index, samples.scales[0][group], rng) for index in chosen]
            yield {name: np.stack([one[name] for one in shown]) for name in shown[0]}


def intervals(losses: np.ndarray, wrong: np.ndarray) -> list[dict]:
    """For each interval of `EDGES`: where it begins, the number of RoIs, the share of errors (None
    for no RoI)."""
    place = np.searchsorted(EDGES, losses, side="right") - 1
    rows = []
    for index, edge in enumerate(EDGES):
        own = place == index
        rows.append({"from": edge, "rois": int(own.sum()), "errors": _share(wrong[own])})
    return rows


def summary(rois: Rois, settings: RetrainSettings) -> dict:
    """Intervals of both losses, and what the run's RoI drop (else the paper's) would drop; shares
    are None where there is nothing to share."""
    from weaksam_jax.detectors.faster_rcnn.loss import DropSettings
    from weaksam_jax.losses.drop import roi_drop

    drop = settings.drop or DropSettings()

    def kept(cls: np.ndarray, reg: np.ndarray, foreground: bool) -> np.ndarray:
        same = np.full(len(cls), foreground), np.ones(len(cls), bool)
        thresholds = drop.tau_cls, drop.tau_reg
        return np.asarray(roi_drop(cls, reg, *same, *thresholds, drop.rule, drop.background))

    stays = kept(rois.cls, rois.reg, True)
    background = kept(rois.cls_background, np.zeros_like(rois.cls_background), False)
    return {
        "rois": len(rois.cls),
        "errors": _share(rois.wrong),
        "cls": intervals(rois.cls, rois.wrong),
        "reg": intervals(rois.reg, rois.wrong),
        "tau_cls": drop.tau_cls,
        "tau_reg": drop.tau_reg,
        "rule": drop.rule,
        "dropped": _share(~stays),
        "errors_of_dropped": _share(rois.wrong[~stays]),
        "errors_of_kept": _share(rois.wrong[stays]),
        "background_rois": len(background),
        "dropped_background": _share(~background),
    }


def _share(flags: np.ndarray) -> float | None:
    return float(flags.mean()) if len(flags) else None


def table(row: dict) -> str:
    """The summary as text."""

    def percent(value: float | None) -> str:
        return "    -" if value is None else f"{100 * value:5.1f}"

    where = "the run's detector" if row["step"] is None else f"after {row['step']} steps"
    lines = [f"{where}: {row['rois']} foreground RoIs, {percent(row['errors'])} % errors"]
    lines.append(
        f"{'loss from':>10} {'cls RoIs':>9} {'errors %':>9} {'reg RoIs':>9} {'errors %':>9}"
    )
    for cls, reg in zip(row["cls"], row["reg"], strict=True):
        cells = [f"{one['rois']:9} {percent(one['errors']):>9}" for one in (cls, reg)]
        lines.append(f"{cls['from']:10.2f} {cells[0]} {cells[1]}")
    gone, kept = percent(row["errors_of_dropped"]), percent(row["errors_of_kept"])
    lines.append(
        f"tau_cls {row['tau_cls']:g}, tau_reg {row['tau_reg']:g}, {row['rule']}: "
        f"{percent(row['dropped'])} % dropped, of which {gone} % are errors, of those kept {kept} %"
    )
    share = percent(row["dropped_background"])
    lines.append(f"of {row['background_rois']} background RoIs {share} % dropped")
    return "\n".join(lines)


def draw(rois: Rois, path: Path, step: int | None) -> None:
    """Bars: number of RoIs an interval; line: share of errors."""
    from matplotlib.figure import Figure

    from weaksam_jax.files import atomic_path

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("cls", "reg"), strict=True):
        rows = intervals(getattr(rois, name), rois.wrong)
        x = range(len(rows))
        axis.bar(x, [row["rois"] for row in rows], color="tab:blue", alpha=0.6)
        axis.set_xticks(x, [f"{row['from']:g}" for row in rows])
        title = {"cls": "classification loss", "reg": "box loss (L1)"}[name]
        axis.set(xlabel=f"{title} from", ylabel="foreground RoIs")
        right = axis.twinx()
        share = [np.nan if row["errors"] is None else 100 * row["errors"] for row in rows]
        right.plot(x, share, "o-", color="tab:red")
        right.set(ylim=(0, 100), ylabel="of them with a wrong pseudo box, %")
    figure.suptitle(
        "the run's detector" if step is None else f"after {step} steps without RoI drop"
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


if __name__ == "__main__":
    from weaksam_jax.engine.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    sys.exit(entry_point(main))
