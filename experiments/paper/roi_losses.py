"""Losses of sampled RoIs, and whether their pseudo boxes are wrong: Figures 3 and 5, counted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from experiments.pipeline.detectors import RetrainConfig
from weaksam_jax.boxes import iou
from weaksam_jax.data.augment import AugmentConfig
from weaksam_jax.data.pseudo_boxes import PseudoSamples
from weaksam_jax.data.records import TagSplit, TruthRecord, TruthSplit
from weaksam_jax.data.scales import shown_at
from weaksam_jax.detectors.faster_rcnn import FasterRcnn
from weaksam_jax.detectors.faster_rcnn.config import DropConfig, FasterRcnnConfig
from weaksam_jax.detectors.faster_rcnn.loss import RoiLosses, sampled_roi_losses
from weaksam_jax.engine.precision import products
from weaksam_jax.engine.step import Params
from weaksam_jax.losses.drop import roi_drop

ERROR_IOU = 0.7
EDGES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # the last interval is open
Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Rois:
    """Foreground RoIs of all images: losses float32 `[R]`, whether their box is wrong, bool `[R]`;
    cls_background: losses of the background ones."""

    cls: np.ndarray
    reg: np.ndarray
    wrong: np.ndarray
    cls_background: np.ndarray


@dataclass(frozen=True)
class Judge:
    """Holds the boxes of RoIs against the truth. same_class: a true box of another class does not
    make a pseudo box right."""

    truth: TruthSplit
    same_class: bool = False

    def __call__(self, rois: RoiLosses, batch: Batch, ids: np.ndarray) -> Iterator[tuple]:
        """The columns of `Rois` for each image of a batch. rois: of `sampled_roi_losses`."""
        records = {record.image_id: record for record in self.truth.records}
        for row in range(len(np.unique(ids))):  # a last batch repeats its first image
            record, valid = records[int(ids[row])], rois.valid[row]
            own = rois.foreground[row] & valid
            labels, size = rois.labels[row][own], batch["size"][row]
            wrong = self.wrong(rois.targets[row][own], labels, record, size=size)
            yield rois.cls[row][own], rois.reg[row][own], wrong, rois.cls[row][valid & ~own]

    def wrong(
        self, boxes: np.ndarray, labels: np.ndarray, record: TruthRecord, *, size: np.ndarray
    ) -> np.ndarray:
        """Which pseudo boxes `[n, 4]` are wrong, in pixels of the image shown with (height, width)
        `size`: bool `[n]`."""
        factor = np.asarray([record.width / size[1], record.height / size[0]] * 2)
        right = iou(boxes * factor, record.boxes) >= ERROR_IOU
        if self.same_class:
            right &= record.labels[None, :] == labels[:, None]
        return ~right.any(1)


def unaugmented(pgt: Mapping, split: TagSplit, config: RetrainConfig) -> PseudoSamples:
    """The training samples at the largest scale, as they are."""
    return PseudoSamples(pgt, split, config.data.scales[-1:], augment=AugmentConfig(flip=0.0))


def sample(
    detector: FasterRcnn, params: Params, samples: PseudoSamples, *, judge: Judge, seed: int = 0
) -> Rois:
    """Samples the RoIs of every image with pseudo boxes as training does."""
    losses, key = jax.jit(partial(_losses, detector)), jax.random.key(seed)
    params, found = jax.device_put(params), []
    for number, batch in enumerate(batches(samples, detector.config.optim.batch_size)):
        ids = batch.pop("image_id")
        rois = jax.device_get(losses(params, batch, jax.random.fold_in(key, number)))
        found += judge(rois, batch, ids)
    return Rois(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _losses(detector: FasterRcnn, params: Params, batch: Batch, key: jax.Array) -> RoiLosses:
    """The losses of a batch's sampled RoIs."""
    batch, config = batch | {"image": detector.normalised(batch)}, detector.config
    keys = jax.random.split(key, len(batch["size"]))
    with products(config.model.precision):
        return sampled_roi_losses(detector.network, params, batch, keys=keys, config=config.loss)


def batches(samples, size: int) -> Iterator[Batch]:
    """Every sample once, `size` of one padded size at a time; a last batch repeats its first."""
    rng = np.random.default_rng(0)
    for bucket in sorted(set(samples.buckets)):
        members = [i for i, own in enumerate(samples.buckets) if own == bucket]
        for start in range(0, len(members), size):
            chosen = members[start : start + size]
            chosen += chosen[:1] * (size - len(chosen))
            shown = [samples(index, shown_at(samples.scales[0], bucket), rng) for index in chosen]
            yield {name: np.stack([one[name] for one in shown]) for name in shown[0]}


def intervals(
    losses: np.ndarray,
    wrong: np.ndarray,
    edges: Sequence[float] = EDGES,
    *,
    what: str = "rois",
) -> list[dict]:
    """For each interval: where it begins, the number of RoIs (what: how they are called), the share
    of errors (None for no RoI)."""
    place = np.searchsorted(edges, losses, side="right") - 1
    rows = []
    for index, edge in enumerate(edges):
        own = place == index
        rows.append({"from": edge, what: int(own.sum()), "errors": share(wrong[own])})
    return rows


def summary(rois: Rois, config: FasterRcnnConfig) -> dict:
    """Intervals of both losses, and what the config's RoI drop (else the paper's) would drop;
    shares are None where there is nothing to share."""
    drop = config.loss.drop or DropConfig()
    stays = _kept(rois.cls, rois.reg, True, drop=drop)
    no_boxes = np.zeros_like(rois.cls_background)
    background = _kept(rois.cls_background, no_boxes, False, drop=drop)
    return {
        "rois": len(rois.cls),
        "errors": share(rois.wrong),
        "cls": intervals(rois.cls, rois.wrong),
        "reg": intervals(rois.reg, rois.wrong),
        "tau_cls": drop.tau_cls,
        "tau_reg": drop.tau_reg,
        "rule": drop.rule,
        "dropped": share(~stays),
        "errors_of_dropped": share(rois.wrong[~stays]),
        "errors_of_kept": share(rois.wrong[stays]),
        "background_rois": len(background),
        "dropped_background": share(~background),
    }


def _kept(cls: np.ndarray, reg: np.ndarray, foreground: bool, drop: DropConfig) -> np.ndarray:
    """Which RoIs of one kind RoI drop keeps: bool `[R]`."""
    keep = roi_drop(
        cls,
        reg,
        np.full(len(cls), foreground),
        valid=np.ones(len(cls), bool),
        tau_cls=drop.tau_cls,
        tau_reg=drop.tau_reg,
        rule=drop.rule,
        drop_background=drop.background,
    )
    return np.asarray(keep)


def share(flags: np.ndarray) -> float | None:
    """The share of True; None of nothing."""
    return float(flags.mean()) if len(flags) else None
