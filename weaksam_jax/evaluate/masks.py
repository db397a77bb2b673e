"""Masks against true masks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from pycocotools import mask as mask_utils

from weaksam_jax.data.detections import DetectionTable, Results, annotation_arrays, as_arrays
from weaksam_jax.data.masks import as_bytes
from weaksam_jax.data.records import TruthRecord, TruthSplit
from weaksam_jax.evaluate.recall import greedy_matches
from weaksam_jax.evaluate.voc import class_precisions, mean_precision


def mask_quality(pseudo: Mapping, truth: TruthSplit) -> dict | None:
    """Pseudo masks (a COCO annotation dictionary) against true masks of the same class.

    Images without true masks are left out; None when there is none at all. Shares 0..1: iou: mean
    IoU of the one-to-one greedy pairs with any overlap; precision50, recall50: pairs with IoU >=
    0.5 over pseudo masks and over objects (difficult ones and crowds count for neither).
    """
    found = annotation_arrays(pseudo, truth, masks=True)
    rles = found.masks
    judged = []
    for record, mine in zip(truth.records, found.of_images(), strict=True):
        if record.masks is not None:
            judged.append(_judge(record, [rles[i] for i in mine], found.labels[mine]))
    if not judged:
        return None
    overlaps = [value for values, *_ in judged for value in values]
    right = sum(value >= 0.5 for value in overlaps)
    return {
        "images": len(judged),
        "iou": float(np.mean(overlaps)) if overlaps else 0.0,
        "precision50": right / max(sum(masks for _, masks, _ in judged), 1),
        "recall50": right / max(sum(objects for *_, objects in judged), 1),
    }


def _judge(
    record: TruthRecord, rles: list[dict], labels: np.ndarray
) -> tuple[list[float], int, int]:
    """(IoU of each pair, pseudo masks, objects that count) of one image."""
    usable = np.asarray([mask is not None for mask in record.masks], bool)
    usable &= ~(record.difficult | record.crowd)
    values: list[float] = []
    for label in np.union1d(record.labels, labels):
        mine = np.flatnonzero(labels == label)
        own = np.flatnonzero(usable & (record.labels == label))
        overlap = rle_iou([rles[i] for i in mine], [record.masks[i] for i in own])
        values += [overlap[pair] for pair in greedy_matches(overlap, 1e-9)]
    return values, len(rles), int(usable.sum())


def mask_recall(
    masks: Sequence[Sequence[dict]],
    truth: TruthSplit,
    thresholds: Sequence[float] = (0.5, 0.75, 0.9),
) -> dict[str, float] | None:
    """Share (0..1) of the true masks that a proposal's mask covers with that IoU, one-to-one.

    masks: RLE dictionaries, a list per image of `truth`. None when no image has true masks.
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


def voc_mask_ap(detections: Results, truth: TruthSplit) -> dict:
    """VOC AP^r in percent at mask IoU .25, .5, .7 and .75: {"ap25", "ap50", ..., "per_class"}.

    The rule of `voc_ap` (area under the monotone precision, "12"; difficult objects ignored) with
    the IoU of masks in place of boxes (Hariharan et al., 2014). detections: COCO results with
    `segmentation`. truth: every object with a mask, see `only_masked`. per_class is at .5.
    """
    found = as_arrays(detections, truth, masks=True)
    ious, row = {}, np.zeros(len(found), int)
    for image, mine in enumerate(found.of_images()):
        row[mine] = np.arange(len(mine))
        rles = [found.masks[i] for i in mine]
        ious[image] = rle_iou(rles, truth.records[image].masks or ())

    def overlap(detection: int, image: int, own: np.ndarray) -> np.ndarray:
        return ious[image][row[detection], own]

    per_class = {
        iou: class_precisions(found, truth, iou, rule="12", overlap=overlap)
        for iou in (0.25, 0.5, 0.7, 0.75)
    }
    means = {f"ap{round(100 * iou)}": mean_precision(one) for iou, one in per_class.items()}
    return {**means, "per_class": per_class[0.5]}


def only_masked(detections: Results, truth: TruthSplit) -> tuple[DetectionTable, TruthSplit]:
    """The images that have true masks, of them the objects that have one, and the detections there.

    (VOC annotates the masks of some images only; detections elsewhere are neither right nor wrong.)
    """
    has = np.asarray([record.masks is not None for record in truth.records], bool)
    records = tuple(_masked(record) for record in truth.records if record.masks is not None)
    found = as_arrays(detections, truth, masks=True).in_images(has)
    return found, replace(truth, records=records)


def _masked(record: TruthRecord) -> TruthRecord:
    has = np.asarray([mask is not None for mask in record.masks], bool)
    names = ("boxes", "labels", "difficult", "crowd")
    columns = {name: getattr(record, name)[has] for name in names}
    masks = tuple(mask for mask in record.masks if mask is not None)
    return replace(record, masks=masks, written=record.xywh[has], **columns)


def rle_iou(a: Sequence[dict], b: Sequence[dict]) -> np.ndarray:
    """IoU `[len(a), len(b)]` of RLE masks of one image."""
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    a, b = [as_bytes(one) for one in a], [as_bytes(one) for one in b]
    return np.asarray(mask_utils.iou(a, b, [0] * len(b)), np.float64).reshape(len(a), len(b))
