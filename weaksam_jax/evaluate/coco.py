"""COCO average precision, by pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from weaksam_jax.data.detections import annotation_file, as_arrays
from weaksam_jax.data.records import TruthRecord, TruthSplit

# As pycocotools writes them: 0.5 + 2 * 0.05 is more than 0.6, and IoUs of just 0.6 occur.
IOUS = np.linspace(0.5, 0.95, 10)


def coco_ap(
    detections: Sequence[Mapping], truth: TruthSplit, kind: Literal["bbox", "segm"] = "bbox"
) -> dict[str, float]:
    """COCO AP in percent: {"ap" (.50:.95), "ap50", "ap75"}, and for "segm" also "ap25", "ap70".

    detections: COCO results, for "segm" with `segmentation`. Difficult objects and crowds are
    ignored (neither right nor wrong). Raises `BadDetections` for a fault in the detections.
    """
    results = _results(detections, truth, kind)
    ap = _precisions(results, truth, kind, thresholds=IOUS)
    result = {"ap": float(np.mean(ap)), "ap50": ap[0], "ap75": ap[5]}
    if kind == "segm":
        result["ap25"], result["ap70"] = _precisions(results, truth, kind, thresholds=[0.25, 0.7])
    return result


def _results(detections: Sequence[Mapping], truth: TruthSplit, kind: str) -> list[dict]:
    """The checked detections with nothing but what pycocotools needs: it takes one with a key
    `caption` or `keypoints` for another task's."""
    table = as_arrays(detections, truth, masks=kind == "segm")
    ids = [record.image_id for record in truth.records]
    columns = table.image.tolist(), table.labels.tolist(), table.xywh.tolist()
    rows = [
        {"image_id": ids[image], "category_id": truth.category_ids[label], "bbox": box, "score": s}
        for image, label, box, s in zip(*columns, table.scores.tolist(), strict=True)
    ]
    if table.masks is None:
        return rows
    return [{**row, "segmentation": mask} for row, mask in zip(rows, table.masks, strict=True)]


def truth_as_coco(truth: TruthSplit, masks: bool = False) -> COCO:
    """The truth as a pycocotools data set; `difficult` is kept for `_Evaluation`.

    masks: with `segmentation`, and without the objects that have no mask.
    """
    rows = [row for record in truth.records for row in _objects(record, truth, masks)]
    coco = COCO()
    coco.dataset = annotation_file(truth, rows)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _objects(record: TruthRecord, truth: TruthSplit, masks: bool) -> list[dict]:
    """One image's objects as COCO annotations."""
    shapes = record.masks if masks and record.masks else [None] * len(record.boxes)
    rows = []
    columns = record.xywh.tolist(), record.labels, record.crowd, record.difficult
    for box, label, crowd, difficult, shape in zip(*columns, shapes, strict=True):
        row = {"image_id": record.image_id, "category_id": truth.category_ids[int(label)]}
        row |= {"bbox": box, "area": box[2] * box[3]}
        row |= {"iscrowd": int(crowd), "difficult": bool(difficult)}
        if not masks or shape is not None:
            rows.append(row if shape is None else {**row, "segmentation": shape})
    return rows


class _Evaluation(COCOeval):
    """pycocotools takes its `ignore` from `iscrowd`; here difficult objects are ignored as well,
    but stay objects: one detection each, and IoU by the union (a crowd's is by the detection)."""

    def _prepare(self):
        super()._prepare()
        for objects in self._gts.values():
            for one in objects:
                one["ignore"] |= one["difficult"]


def _precisions(found, truth, kind, thresholds) -> list[float]:
    """AP in percent at each IoU threshold."""
    if not found:
        return [0.0] * len(thresholds)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = truth_as_coco(truth, masks=kind == "segm")
        results = coco.loadRes(found)
        evaluation = _Evaluation(coco, results, kind)
        evaluation.params.iouThrs = np.asarray(thresholds)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; all areas
    valid = precision > -1
    sums = np.where(valid, precision, 0).sum((1, 2)) / np.maximum(valid.sum((1, 2)), 1)
    return [100 * float(value) for value in sums]
