"""Average precision as the VOC devkit defines it."""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from weaksam_jax.data.detections import DetectionTable, Results, as_arrays
from weaksam_jax.data.records import TruthSplit
from weaksam_jax.evaluate.overlap import xywh_iou

# (detection, image, index of objects) -> IoU of the detection with each of those objects.
Overlap = Callable[[int, int, np.ndarray], np.ndarray]
# Of a class: image index -> (index of its objects there, bool: ignored).
Objects = dict[int, tuple[np.ndarray, np.ndarray]]


def voc_ap(
    detections: Results,
    truth: TruthSplit,
    iou: float = 0.5,
    rule: Literal["07", "12"] = "07",
) -> dict:
    """Average precision in percent (0..100): {"ap50": mean over classes, "per_class": {name: AP}}.

    detections: COCO results. The devkit's rule: the detections of a class by falling score; each
    goes to the object of its image with the highest IoU; it is right when that IoU >= `iou` and
    the object is not taken yet, ignored when the object is difficult (or a crowd), else wrong.
    rule "07": mean precision at recalls 0, 0.1, ... 1; "12": area under the monotone precision.
    Classes without a non-difficult object have no AP. The devkit's IoU of 1-based inclusive corners
    with "+1" is the IoU of the continuous corners used here, fractions included. (MIST's
    official code makes both boxes a pixel larger before it adds the 1 once more, which is a little
    kinder: docs/provenance/mil.md, section 4.)
    The key is "ap50" whatever `iou` is.
    """
    per_class = class_precisions(as_arrays(detections, truth), truth, iou, rule=rule)
    return {"ap50": mean_precision(per_class), "per_class": per_class}


def class_precisions(
    found: DetectionTable, truth: TruthSplit, iou: float, rule: str, overlap: Overlap | None = None
) -> dict[str, float]:
    """{class name: AP in percent} of the classes with an object that is not difficult."""
    per_class, overlap = {}, overlap or _box_overlap(found, truth)
    rows = zip(truth.classes, found.of_classes(), _objects(truth), strict=True)
    for name, own, objects in rows:
        right, wrong, positives = match_class(found, own, objects, iou=iou, overlap=overlap)
        if positives:
            recall = np.cumsum(right) / positives
            precision = np.cumsum(right) / np.maximum(np.cumsum(right) + np.cumsum(wrong), 1)
            per_class[name] = 100 * average_precision(recall, precision, rule)
    return per_class


def mean_precision(per_class: Mapping[str, float]) -> float:
    """The mean over the classes; 0 when no class has an object."""
    return float(np.mean(list(per_class.values()))) if per_class else 0.0


def match_class(
    found: DetectionTable, index: np.ndarray, objects: Objects, *, iou: float, overlap: Overlap
) -> tuple[np.ndarray, np.ndarray, int]:
    """(right bool `[n]`, wrong bool `[n]`, positives) of one class, by falling score.

    index: its detections; objects: of that class; overlap: how a detection and objects overlap.
    """
    index = index[np.argsort(-found.scores[index], kind="stable")]
    positives = sum(int((~ignored).sum()) for _, ignored in objects.values())
    taken = {image: np.zeros(len(own), bool) for image, (own, _) in objects.items()}
    right, wrong = np.zeros(len(index), bool), np.zeros(len(index), bool)
    for rank, detection in enumerate(index):
        image = int(found.image[detection])
        own, ignored = objects.get(image, (None, None))
        overlaps = [-1.0] if own is None else overlap(int(detection), image, own)
        best = int(np.argmax(overlaps))
        if overlaps[best] < iou:
            wrong[rank] = True
        elif not ignored[best]:
            right[rank], wrong[rank] = not taken[image][best], taken[image][best]
            taken[image][best] = True
    return right, wrong, positives


def _objects(truth: TruthSplit) -> list[Objects]:
    """Of each class: image index -> (index of its objects there, bool: ignored)."""
    classes: list[Objects] = [{} for _ in truth.classes]
    for image, record in enumerate(truth.records):
        ignored = record.difficult | record.crowd
        for label in np.unique(record.labels).tolist():
            own = np.flatnonzero(record.labels == label)
            classes[label][image] = own, ignored[own]
    return classes


def _box_overlap(found: DetectionTable, truth: TruthSplit) -> Overlap:
    def overlap(detection: int, image: int, own: np.ndarray) -> np.ndarray:
        return xywh_iou(found.xywh[detection][None], truth.records[image].xywh[own])[0]

    return overlap


def average_precision(recall: np.ndarray, precision: np.ndarray, rule: str) -> float:
    """AP (0..1) of a curve in order of falling score, by the 11-point or the area rule."""
    if not len(recall):
        return 0.0
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "07":
        place = np.searchsorted(recall, np.arange(11) / 10)
        reached = place < len(recall)
        return float(np.where(reached, envelope[np.minimum(place, len(recall) - 1)], 0).mean())
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
