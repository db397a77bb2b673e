"""COCO results: read and checked, and as arrays."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weaksam_jax.boxes import from_xywh
from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_json


@dataclass(frozen=True)
class Detections:
    """image: int `[N]`, index into the split's records; boxes `[N, 4]`; scores `[N]`; labels."""

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def read_detections(path: str | Path, masks: bool = False, scores: bool = False) -> list[dict]:
    """COCO results, or the annotations of a COCO file: every entry is an object with an image_id
    (integer or text), a category_id (integer), a bbox of four finite numbers and, where it has one,
    a finite score.

    masks, scores: whether an entry without `segmentation`, `score` is refused. Raises `BadInput`
    that names the file, the entry (counted from 0) and its fault.
    """
    found = read_json(path)
    if isinstance(found, dict):
        found = found.get("annotations")
    if not isinstance(found, list):
        hint = "give a JSON list of results, or a file with annotations"
        raise BadInput(path, "is no COCO results file", hint)
    needed = ["image_id", "category_id", "bbox"]
    needed += ["segmentation"] * masks + ["score"] * scores
    for number, one in enumerate(found):
        for key in needed:
            if not isinstance(one, dict) or key not in one:
                raise BadInput(path, f"entry {number} has no {key}", "give COCO results with it")
        if fault := _fault(one):
            raise BadInput(path, f"entry {number}: {fault}", "correct it where it was made")
    return found


def _fault(one: Mapping) -> str | None:
    """What is wrong with the values of a COCO result."""
    image, category, box = one["image_id"], one["category_id"], one["bbox"]
    if isinstance(image, bool) or not isinstance(image, int | str):
        return "image_id is neither an integer nor a name"
    if isinstance(category, bool) or not isinstance(category, int):
        return "category_id is no integer"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return "bbox is no [x, y, w, h] of finite numbers"
    return None if _is_finite(one.get("score", 1)) else "score is no finite number"


def _is_finite(value: Any) -> bool:
    """Whether it is a number that a float can hold (JSON's NaN, Infinity and 10**400 are not)."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Faults of "detections" become faults of that file."""
    try:
        yield
    except BadInput as error:
        if error.path != "detections":
            raise
        raise BadInput(path, error.problem, error.hint) from error


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
        hint = f"give COCO results made on {truth.dataset}/{truth.split}"
        raise BadInput("detections", problem, hint) from error
    strange = ~(np.isfinite(boxes).all(1) & np.isfinite(scores))
    if strange.any():
        problem = f"entry {int(np.argmax(strange))} has a box or score that is not finite"
        raise BadInput("detections", problem, "look for NaN where they were made")
    integers = np.asarray(image, np.int64), np.asarray(labels, np.int64)
    return Detections(integers[0], from_xywh(boxes), scores, integers[1])
