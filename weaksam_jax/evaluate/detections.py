"""COCO results as arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weaksam_jax.boxes import from_xywh
from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.errors import BadInput


@dataclass(frozen=True)
class Detections:
    """image: int `[N]`, index into the split's records; boxes `[N, 4]`; scores `[N]`; labels."""

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def as_arrays(detections: Sequence[Mapping], truth: TruthSplit | TagSplit) -> Detections:
    """COCO results (or annotations; score 1 where there is none) of the images of a split.

    Raises `BadInput` for a detection whose image or category the split does not have, or whose
    box or score is not finite.
    """
    places = {record.image_id: index for index, record in enumerate(truth.records)}
    class_of = {category: label for label, category in enumerate(truth.category_ids)}
    try:
        image = [places[one["image_id"]] for one in detections]
        labels = [class_of[one["category_id"]] for one in detections]
        boxes = np.asarray([one["bbox"] for one in detections], np.float64).reshape(-1, 4)
        scores = np.asarray([one.get("score", 1.0) for one in detections], np.float64)
    except KeyError as error:
        problem = f"{error.args[0]!r} is missing, or no image or category of this split"
        cure = f"give COCO results made on {truth.dataset}/{truth.split}"
        raise BadInput("detections", problem, cure) from error
    strange = ~(np.isfinite(boxes).all(1) & np.isfinite(scores))
    if strange.any():
        problem = f"entry {int(np.argmax(strange))} has a box or score that is not finite"
        raise BadInput("detections", problem, "look for NaN where they were made")
    integers = np.asarray(image, np.int64), np.asarray(labels, np.int64)
    return Detections(integers[0], from_xywh(boxes), scores, integers[1])
