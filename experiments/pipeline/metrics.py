"""What each stage reports: its part of metrics.json. Figures that need truth are left out where
there is none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from weaksam_jax.data.detections import Results, to_coco
from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.data.store import is_stored, read_clues, read_proposals
from weaksam_jax.evaluate import (
    coco_ap,
    corloc,
    mask_quality,
    mask_recall,
    pgt_quality,
    proposal_recall,
    voc_ap,
)
from weaksam_jax.progress import progress_bar

ApRule = Literal["voc07", "voc12", "coco"]
Splits = Mapping[str, TagSplit]
Truths = Mapping[str, TruthSplit | None]
# How many of the first proposals the recall curve is measured at.
RECALL_LIMITS = (25, 50, 100, 150, 200, 250, 400, 800)


def proposals(root: Path, splits: Splits, truths: Truths, difficult: bool = True) -> dict:
    """Number of boxes and recall on the training split, its curve, and recall of masks.

    difficult: whether such objects count in the recall of boxes (in that of masks they always do).
    """
    split, truth = splits["train"], truths["train"]
    bar = progress_bar(split.records, "recall")
    stored = [read_proposals(root, split.split, record) for record in bar]
    boxes = [one.boxes for one in stored]
    result = {"per_image": float(np.mean([len(one) for one in boxes]))}
    if truth is None:
        return result
    result["recall"] = proposal_recall(boxes, truth, difficult=difficult)
    most = max(map(len, boxes))
    result["recall_at"] = {
        str(limit): proposal_recall(boxes, truth, limit=limit, difficult=difficult)
        for limit in RECALL_LIMITS
        if limit < most
    }
    if all(one.masks is not None for one in stored):
        with_masks = mask_recall([one.rles() for one in stored], truth)
        if with_masks is not None:
            result["mask_recall"] = with_masks
    return result


def counted(difficult: bool) -> str:
    """What a table of recall says of the objects that it counts."""
    return f"difficult objects {'count' if difficult else 'do not count'}"


def wsod(
    found: Mapping[str, Results],
    splits: Splits,
    truths: Truths,
    clue_root: Path,
    rule: ApRule = "voc07",
) -> dict:
    """AP on the test split, CorLoc on the training split, and both of thresholded CAMs."""
    result = {}
    if truths["test"] is not None:
        result |= average_precisions(found["test"], truths["test"], rule)
        cams = cam_detections(clue_root, splits["test"])
        if cams is not None:
            result["cam_ap50"] = ap50(cams, truths["test"], rule)
    if truths["train"] is not None:
        result["corloc"] = corloc(found["train"], truths["train"])["corloc"]
        cams = cam_detections(clue_root, splits["train"])
        if cams is not None:
            result["cam_corloc"] = corloc(cams, truths["train"])["corloc"]
    return {"wsod": result}


def average_precisions(found: Results, truth: TruthSplit, rule: ApRule = "voc07") -> dict:
    """{"ap50": by the rule, "ap": COCO's mean over .50:.95, "per_class": AP50}, percent.

    COCO's AP50 has no classes here: theirs are those of VOC's area.
    """
    voc, coco = voc_ap(found, truth, rule=_voc_rule(rule)), coco_ap(found, truth)
    first = coco["ap50"] if rule == "coco" else voc["ap50"]
    return {"ap50": first, "ap": coco["ap"], "per_class": voc["per_class"]}


def ap50(found: Results, truth: TruthSplit, rule: ApRule = "voc07") -> float:
    """AP50 by that rule, percent."""
    if rule == "coco":
        return coco_ap(found, truth)["ap50"]
    return voc_ap(found, truth, rule=_voc_rule(rule))["ap50"]


def _voc_rule(rule: ApRule) -> str:
    return "07" if rule == "voc07" else "12"


def cam_detections(root: Path, split: TagSplit) -> list[dict] | None:
    """The baseline: boxes of thresholded fine CAMs as COCO results; None without stored clues."""
    from bridge.clues.cam_boxes import cam_boxes

    results, names, classes = [], ("fine", "class_logits"), len(split.classes)
    for record in split.records:
        if not is_stored(root, split.split, record.image_id):
            return None
        arrays = read_clues(root, split.split, record, names=names, classes=classes)
        maps, ids = arrays["fine"].astype(np.float32), arrays["class_ids"]
        if not len(ids):
            continue
        scale = max(maps.shape[1:]) / max(record.height, record.width)
        boxes, scores, labels = cam_boxes(
            maps, ids, arrays["class_logits"], min_area=4, scale=scale
        )
        found = {"boxes": boxes, "scores": scores, "labels": labels}
        results += to_coco(record, split, **found, digits=None)
    return results


def pgt(made: Mapping[str, dict], truth: TruthSplit | None) -> dict:
    """Precision and recall of the adaptive pseudo boxes ("pgt") and of top-1 ("pgt_top1")."""
    if truth is not None:
        qualities = {name: pgt_quality(one, truth) for name, one in made.items()}
        for one in qualities.values():
            del one["per_class"]  # `experiments.pgt` prints it
    else:
        qualities = {
            name: {"per_image": len(one["annotations"]) / max(len(one["images"]), 1)}
            for name, one in made.items()
        }
    return {"pgt": qualities["pgt"], "pgt_top1": qualities["top1"]}


def masks(pseudo: dict, truth: TruthSplit | None) -> dict:
    """Number of pseudo masks, and their IoU with the true ones where those exist."""
    result = {"per_image": len(pseudo["annotations"]) / max(len(pseudo["images"]), 1)}
    quality = None if truth is None else mask_quality(pseudo, truth)
    return {"masks": result | (quality or {})}
