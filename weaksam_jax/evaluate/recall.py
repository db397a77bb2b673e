"""Recall of proposals, and precision and recall of pseudo ground truth."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from weaksam_jax.boxes import containment, from_xywh, to_xywh
from weaksam_jax.data.detections import annotation_arrays
from weaksam_jax.data.records import TruthSplit
from weaksam_jax.evaluate.overlap import xywh_iou


def greedy_matches(overlap: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """One-to-one pairs (row, column) of `overlap` `[N, M]`: always the highest left, >= threshold.

    Equal overlaps: the lower row, then the lower column first.
    """
    overlap = overlap.copy()
    pairs = []
    while overlap.size:
        row, column = np.unravel_index(np.argmax(overlap), overlap.shape)
        if overlap[row, column] < threshold:
            break
        pairs.append((int(row), int(column)))
        overlap[row], overlap[:, column] = -1, -1
    return pairs


def proposal_recall(
    boxes: Sequence[np.ndarray],
    truth: TruthSplit,
    thresholds: Sequence[float] = (0.5, 0.75, 0.9),
    limit: int | None = None,
    difficult: bool = True,
    form: Literal["corners", "xywh"] = "corners",
) -> dict[str, float]:
    """Share (0..1) of the objects found at each IoU, {"0.50": ..., "0.75": ..., "0.90": ...}.

    boxes: `[n, 4]` per image of `truth`, best first, x1 y1 x2 y2 or, by `form`, x y width height as
    they are written; limit: only the first `limit` count. Matching
    is one-to-one and greedy. Crowds do not count; difficult objects do, as in the paper's tables,
    unless `difficult` is False. (WeakSAM's evaluator, but for the images without proposals that it
    drops from the denominator: here their objects count as missed.)
    """
    found, total = {threshold: 0 for threshold in thresholds}, 0
    for own, record in zip(boxes, truth.records, strict=True):
        counts = ~record.crowd if difficult else ~(record.crowd | record.difficult)
        objects = record.xywh[counts]
        total += len(objects)
        own = own[:limit].astype(np.float64)
        overlap = xywh_iou(own if form == "xywh" else to_xywh(own), objects)
        for threshold in thresholds:
            found[threshold] += len(greedy_matches(overlap, threshold))
    return {f"{threshold:.2f}": count / max(total, 1) for threshold, count in found.items()}


def pgt_quality(pgt: Mapping, truth: TruthSplit, iou: float = 0.5) -> dict:
    """Pseudo boxes against the truth of their class, shares 0..1.

    precision50: pseudo boxes matched one-to-one to an object of their class with IoU >= `iou`, over
    all that are not on a difficult object or crowd. recall50: matched objects over all that are
    neither. part_only: objects not matched, but holding a wrong pseudo box of their class (75 % of
    its area inside; wrong: neither matched nor on a difficult object or crowd); missed: the other
    unmatched ones. per_image: pseudo boxes per image. per_class: the same (but for per_image) of
    each class that has a box or an object.
    """
    found = annotation_arrays(pgt, truth)
    # The boxes of each image, found once: a split has thousands of images.
    order = np.argsort(found.image, kind="stable")
    starts = np.searchsorted(found.image[order], np.arange(1, len(truth.records)))
    of_image = np.split(order, starts) if truth.records else []
    counts = np.zeros((len(truth.classes), 4), np.int64)  # right, boxes, objects, part_only
    for here, record in zip(of_image, truth.records, strict=True):
        boxes, labels = found.xywh[here], found.labels[here]
        for label in np.union1d(record.labels, labels):
            own = record.labels == label
            ignored = (record.difficult | record.crowd)[own]
            mine = boxes[labels == label]
            counts[label] += _judge(mine, record.xywh[own], ignored, iou=iou)
    some = {
        name: _shares(*row) for name, row in zip(truth.classes, counts, strict=True) if row.any()
    }
    per_image = len(pgt["annotations"]) / max(len(truth.records), 1)
    return {"per_image": per_image, **_shares(*counts.sum(0)), "per_class": some}


def _judge(mine: np.ndarray, theirs: np.ndarray, ignored: np.ndarray, iou: float) -> np.ndarray:
    """(right, boxes, objects, part_only) of one class in one image; boxes as x y width height."""
    overlap = xywh_iou(mine, theirs)
    pairs = greedy_matches(overlap[:, ~ignored], iou)
    on_ignored = (overlap[:, ignored] >= iou).any(1)
    matched = [row for row, _ in pairs]
    on_ignored[matched] = False
    wrong = ~on_ignored
    wrong[matched] = False
    left = np.setdiff1d(np.arange((~ignored).sum()), [column for _, column in pairs])
    inside = containment(from_xywh(mine[wrong]), from_xywh(theirs[~ignored][left]))
    part_only = (inside >= 0.75).any(0).sum()
    return np.asarray([len(pairs), (~on_ignored).sum(), (~ignored).sum(), part_only])


def _shares(right: int, boxes: int, objects: int, part_only: int) -> dict:
    return {
        "precision50": float(right / max(boxes, 1)),
        "recall50": float(right / max(objects, 1)),
        "objects": int(objects),
        "found": int(right),
        "part_only": int(part_only),
        "missed": int(objects - right - part_only),
    }
