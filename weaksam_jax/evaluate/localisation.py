"""Correct localisation (CorLoc), as the WSOD papers define it."""

from typing import Literal

import numpy as np

from weaksam_jax.boxes import to_xywh
from weaksam_jax.data.detections import DetectionTable, Results, as_arrays
from weaksam_jax.data.records import TruthSplit
from weaksam_jax.evaluate.overlap import xywh_iou
from weaksam_jax.evaluate.voc import mean_precision


def corloc(
    detections: Results,
    truth: TruthSplit,
    iou: float = 0.5,
    convention: Literal["continuous", "official"] = "continuous",
) -> dict:
    """CorLoc in percent: {"corloc": mean over classes, "per_class": {name: CorLoc}}.

    Of the images that contain a class (difficult objects included), the share in which the single
    best detection of the class has IoU > `iou` (strict, as in the text of the PASCAL criterion that
    Deselaers et al. 2012 took; its devkit's AP takes >=) with an object of the class; an image
    without a detection of it is a miss.

    convention "official": what MIST's official script makes of the same boxes
    (docs/provenance/mil.md, section 4). It compares detections in 0-based inclusive corners,
    rounded to 0.1 pixel, with the 1-based corners of the annotation, widths counting the last
    pixel. The "+1" is what continuous corners have anyway; what remains is that every object stands
    one pixel further right and down.
    """
    found = as_arrays(detections, truth)
    boxes, shift = found.xywh, np.zeros(4)
    if convention == "official":
        last = np.asarray([0, 0, 1, 1])
        boxes = to_xywh(np.round(found.boxes - last, 1) + last)
        shift = np.asarray([1, 1, 0, 0])
    best, hits = _best_of_each(found), [[] for _ in truth.classes]
    for image, record in enumerate(truth.records):
        for label in np.unique(record.labels).tolist():
            own = record.xywh[record.labels == label] + shift
            place = best.get((image, label))
            hit = place is not None and xywh_iou(boxes[place][None], own).max() > iou
            hits[label].append(hit)
    named = zip(truth.classes, hits, strict=True)
    per_class = {name: 100 * float(np.mean(own)) for name, own in named if own}
    return {"corloc": mean_precision(per_class), "per_class": per_class}


def _best_of_each(found: DetectionTable) -> dict[tuple[int, int], int]:
    """(image, class) -> its best detection, the first among equals."""
    order = np.lexsort((-found.scores, found.labels, found.image))
    pairs = np.stack([found.image[order], found.labels[order]], 1)
    first = np.ones(len(order), bool)
    first[1:] = (pairs[1:] != pairs[:-1]).any(1)
    return dict(zip(map(tuple, pairs[first].tolist()), order[first].tolist(), strict=True))
