"""COCO average precision, by pycocotools, one class and some images at a time.

pycocotools holds a kilobyte of each detection and a place for every pair of image and class. Its
figures of a class depend on the images that have an object or a detection of it alone, so it is
given no more than these, a part at a time, and what is left of a part are the matches.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from weaksam_jax.data.detection_columns import groups
from weaksam_jax.data.detections import DetectionTable, Results, as_arrays
from weaksam_jax.data.records import TruthSplit

# As pycocotools writes them: 0.5 + 2 * 0.05 is more than 0.6, and IoUs of just 0.6 occur.
IOUS = np.linspace(0.5, 0.95, 10)
Kind = Literal["bbox", "segm"]
_IMAGES = 2000  # that pycocotools sees at once
_KEPT = ("image_id", "dtScores", "gtIgnore")  # of what it says of an image, beside its matches


def coco_ap(detections: Results, truth: TruthSplit, kind: Kind = "bbox") -> dict[str, float]:
    """COCO AP in percent: {"ap" (.50:.95), "ap50", "ap75"}, and for "segm" also "ap25", "ap70".

    detections: COCO results, for "segm" with `segmentation`. Difficult objects and crowds are
    ignored (neither right nor wrong). Raises `BadDetections` for a fault in the detections.
    """
    found = as_arrays(detections, truth, masks=kind == "segm")
    ap = _precisions(found, truth, kind, thresholds=IOUS)
    result = {"ap": float(np.mean(ap)), "ap50": ap[0], "ap75": ap[5]}
    if kind == "segm":
        result["ap25"], result["ap70"] = _precisions(found, truth, kind, thresholds=[0.25, 0.7])
    return result


def _precisions(
    found: DetectionTable, truth: TruthSplit, kind: Kind, thresholds: Sequence[float]
) -> list[float]:
    """AP in percent at each IoU threshold."""
    if not len(found):
        return [0.0] * len(thresholds)
    with contextlib.redirect_stdout(io.StringIO()):
        parts = _Parts(found, truth, kind)
        classes = [
            _class_precision(list(parts.of_class(label)), np.asarray(thresholds), kind)
            for label in range(len(truth.classes))
        ]
    precision = np.stack(classes, 2)  # IoU, recall, class
    valid = precision > -1
    sums = np.where(valid, precision, 0).sum((1, 2)) / np.maximum(valid.sum((1, 2)), 1)
    return [100 * float(value) for value in sums]


def _class_precision(parts: list[tuple[COCO, COCO]], thresholds: np.ndarray, kind: Kind):
    """Precision `[IoU, recall]` of one class; -1 without an object that counts.

    parts: (truth, detections) of all its images, as data sets of pycocotools.
    """
    images, whole = [], _Evaluation(None, None, kind)
    for truth, found in parts:
        whole = _Evaluation(truth, found, kind)
        whole.params.iouThrs = thresholds
        whole.evaluate()
        images += [_matches(one) for one in whole.evalImgs if one is not None]
    if not images:
        return np.full((len(thresholds), len(whole.params.recThrs)), -1.0)
    whole.evalImgs, whole.params.imgIds = images, [one["image_id"] for one in images]
    whole._paramsEval = whole.params
    whole.accumulate()
    return whole.eval["precision"][:, :, 0, 0, 0]


def _matches(image: dict) -> dict:
    """What pycocotools needs of an image when all are put together."""
    flags = {name: image[name].astype(bool) for name in ("dtMatches", "dtIgnore")}
    return {name: image[name] for name in _KEPT} | flags


class _Parts:
    """Detections and truth of some images and one class at a time, as pycocotools takes them."""

    def __init__(self, found: DetectionTable, truth: TruthSplit, kind: Kind):
        self._found, self._truth, self._masks = found, truth, kind == "segm"
        self._rows = found.of_classes()
        none = np.zeros(0, np.int64)
        labels = [record.labels for record in truth.records]
        self._images = np.repeat(np.arange(len(labels)), [len(own) for own in labels])
        self._places = np.concatenate([none, *[np.arange(len(own)) for own in labels]])
        self._objects = groups(np.concatenate([none, *labels]), len(truth.classes))
        # pycocotools takes images by rising id, and equal scores in that order.
        self._order = np.argsort(np.asarray(found.images, np.int64))
        self._rank = np.argsort(self._order)

    def of_class(self, label: int) -> Iterator[tuple[COCO, COCO]]:
        """(truth, detections) of all images that have one of the two."""
        rows, objects = self._rows[label], self._objects[label]
        rank, true = self._rank[self._found.image[rows]], self._rank[self._images[objects]]
        ranks = np.union1d(rank, true)
        for start in range(0, len(ranks), _IMAGES):
            some = ranks[start : start + _IMAGES]
            records = [self._truth.records[image] for image in self._order[some].tolist()]
            images = [{"id": r.image_id, "height": r.height, "width": r.width} for r in records]
            theirs = self._true(objects[_within(true, some)])
            boxes = self._boxes(rows[_within(rank, some)])
            category = self._truth.category_ids[label]
            yield _data_set(images, category, theirs), _data_set(images, category, boxes)

    def _boxes(self, rows: np.ndarray) -> list[dict]:
        found, places = self._found, rows.tolist()
        images = [found.images[image] for image in found.image[rows].tolist()]
        columns = images, found.xywh[rows].tolist(), found.scores[rows].tolist()
        boxes = [
            {"image_id": image, "bbox": box, "score": score, "iscrowd": 0}
            for image, box, score in zip(*columns, strict=True)
        ]
        if not self._masks:
            return boxes
        pairs = zip(boxes, places, strict=True)
        return [{**box, "segmentation": found.masks[place]} for box, place in pairs]

    def _true(self, objects: np.ndarray) -> list[dict]:
        """The objects as annotations; with masks those that have one. `difficult` is for
        `_Evaluation`."""
        rows = []
        pairs = zip(self._images[objects].tolist(), self._places[objects].tolist(), strict=True)
        for image, place in pairs:
            record = self._truth.records[image]
            mask = record.masks[place] if record.masks else None
            row = {"image_id": record.image_id, "bbox": record.xywh[place].tolist()}
            row |= {"iscrowd": int(record.crowd[place]), "difficult": bool(record.difficult[place])}
            if not self._masks or mask is not None:
                rows.append({**row, "segmentation": mask} if self._masks else row)
        return rows


def _within(ranks: np.ndarray, some: np.ndarray) -> np.ndarray:
    return (ranks >= some[0]) & (ranks <= some[-1])


def _data_set(images: list[dict], category: int, rows: list[dict]) -> COCO:
    """A data set of pycocotools with one category; the annotations are numbered from 1 (to it, 0
    is no match)."""
    coco = COCO()
    for number, row in enumerate(rows, 1):
        row |= {"id": number, "category_id": category, "area": row["bbox"][2] * row["bbox"][3]}
    categories = [{"id": category}]
    coco.dataset = {"images": images, "categories": categories, "annotations": rows}
    coco.createIndex()
    return coco


class _Evaluation(COCOeval):
    """pycocotools takes its `ignore` from `iscrowd`; here difficult objects are ignored as well,
    but stay objects: one detection each, and IoU by the union (a crowd's is by the detection).

    Objects of every size, the 100 best detections of each image.
    """

    def __init__(self, truth: COCO | None, found: COCO | None, kind: Kind):
        super().__init__(truth, found, kind)
        params = self.params
        params.areaRng, params.areaRngLbl, params.maxDets = params.areaRng[:1], ["all"], [100]

    def _prepare(self):
        super()._prepare()
        for objects in self._gts.values():
            for one in objects:
                one["ignore"] |= one["difficult"]
