"""Pseudo masks against true masks."""

from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask as mask_utils

from weaksam_jax.data.records import TruthSplit
from weaksam_jax.evaluate.detections import as_arrays
from weaksam_jax.evaluate.recall import greedy_matches


def mask_quality(pseudo: Mapping, truth: TruthSplit) -> dict | None:
    """Pseudo masks (a COCO annotation dictionary) against true masks of the same class.

    Images without true masks are left out; None when there is none at all. Shares 0..1: iou: mean
    IoU of the one-to-one greedy pairs with any overlap; precision50, recall50: pairs with IoU >=
    0.5 over pseudo masks and over objects (difficult ones and crowds count for neither).
    """
    found = as_arrays(pseudo["annotations"], truth)
    rles = [_as_bytes(one["segmentation"]) for one in pseudo["annotations"]]
    overlaps, right, boxes, objects, images = [], 0, 0, 0, 0
    for image, record in enumerate(truth.records):
        if record.masks is None:
            continue
        images += 1
        usable = np.asarray([mask is not None for mask in record.masks], bool)
        usable &= ~(record.difficult | record.crowd)
        for label in np.union1d(record.labels, found.labels[found.image == image]):
            mine = np.flatnonzero((found.image == image) & (found.labels == label))
            own = np.flatnonzero(usable & (record.labels == label))
            boxes, objects = boxes + len(mine), objects + len(own)
            overlap = rle_iou([rles[i] for i in mine], [record.masks[i] for i in own])
            values = [overlap[pair] for pair in greedy_matches(overlap, 1e-9)]
            overlaps += values
            right += sum(value >= 0.5 for value in values)
    if not images:
        return None
    return {
        "images": images,
        "iou": float(np.mean(overlaps)) if overlaps else 0.0,
        "precision50": right / max(boxes, 1),
        "recall50": right / max(objects, 1),
    }


def mask_recall(
    masks: Sequence[Sequence[dict]],
    truth: TruthSplit,
    thresholds: Sequence[float] = (0.5, 0.75, 0.9),
) -> dict[str, float] | None:
    """Share (0..1) of the true masks that a proposal's mask covers with that IoU, one-to-one.

    masks: RLE dictionaries, a list an image of `truth`. None when no image has true masks.
    """
    found, total = {threshold: 0 for threshold in thresholds}, 0
    for own, record in zip(masks, truth.records, strict=True):
        objects = [mask for mask in record.masks or () if mask is not None]
        total += len(objects)
        overlap = rle_iou(list(own), objects)
        for threshold in thresholds:
            found[threshold] += len(greedy_matches(overlap, threshold))
    if not total:
        return None
    return {f"{threshold:.2f}": count / total for threshold, count in found.items()}


def rle_iou(a: Sequence[dict], b: Sequence[dict]) -> np.ndarray:
    """IoU `[len(a), len(b)]` of RLE masks of one image."""
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    a, b = [_as_bytes(one) for one in a], [_as_bytes(one) for one in b]
    return np.asarray(mask_utils.iou(a, b, [0] * len(b)), np.float64).reshape(len(a), len(b))


def _as_bytes(rle: dict) -> dict:
    counts = rle["counts"]
    return {**rle, "counts": counts.encode() if isinstance(counts, str) else counts}
