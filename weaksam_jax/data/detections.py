"""Detections in COCO's form, in and out: the one place where it is read, checked and written.

Results are dictionaries `{"image_id", "file_name", "category_id", "bbox", "score"}`, bbox
as `[x, y, width, height]` in pixels of the upright image. An annotation file is `{"info", "images",
"annotations", "categories"}`.
"""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weaksam_jax.boxes import from_xywh, to_xywh
from weaksam_jax.data.records import TagRecord, TagSplit, TruthRecord, TruthSplit
from weaksam_jax.errors import BadFile, BadInput
from weaksam_jax.files import read_json

Split = TagSplit | TruthSplit
SCORE_DIGITS = 9  # significant: all of a float32, so that no two scores become a tie


class BadDetections(BadInput):
    """A fault in detections whose file is not known here; `naming` names it."""

    def __init__(self, problem: str, hint: str):
        super().__init__("detections", problem, hint)


@dataclass(frozen=True)
class DetectionTable:
    """Detections of a split as columns: image int64 `[N]`, index into the split's records; boxes
    float64 `[N, 4]`, x1 y1 x2 y2; scores float64 `[N]`; labels int64 `[N]`, class indices."""

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
        raise BadFile(path, "is no COCO results file", hint)
    needed = ["image_id", "category_id", "bbox"]
    needed += ["segmentation"] * masks + ["score"] * scores
    for number, one in enumerate(found):
        for key in needed:
            if not isinstance(one, dict) or key not in one:
                raise BadFile(path, f"entry {number} has no {key}", "give COCO results with it")
        if fault := _fault(one):
            raise BadFile(path, f"entry {number}: {fault}", "correct it where it was made")
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
    """`BadDetections` raised inside becomes a `BadFile` of that file."""
    try:
        yield
    except BadDetections as error:
        raise BadFile(path, error.problem, error.hint) from error


def label_of(split: Split) -> dict[int, int]:
    """The class index of every category id of a split."""
    return {category: label for label, category in enumerate(split.category_ids)}


def by_image(detections: Iterable[Mapping], split: Split) -> dict[int, list[Mapping]]:
    """Results or annotations by image id, in the order given; every image of the split has a list.

    Raises `BadDetections` for an image or a category that the split does not have.
    """
    found: dict[int, list[Mapping]] = {record.image_id: [] for record in split.records}
    known = label_of(split)
    for one in detections:
        if one["image_id"] not in found or one["category_id"] not in known:
            what = f"image {one['image_id']}, category {one['category_id']}"
            problem = f"holds {what}, which {split.dataset}/{split.split} does not have"
            raise BadDetections(problem, "use detections made on this split")
        found[one["image_id"]].append(one)
    return found


def as_arrays(detections: Sequence[Mapping], split: Split) -> DetectionTable:
    """COCO results (or annotations; score 1 where there is none) of the images of a split.

    Raises `BadDetections` for a detection whose image or category the split does not have, or whose
    box or score is not finite.
    """
    places = {record.image_id: index for index, record in enumerate(split.records)}
    labels = label_of(split)
    try:
        integers = [(places[one["image_id"]], labels[one["category_id"]]) for one in detections]
        boxes = np.asarray([one["bbox"] for one in detections], np.float64).reshape(-1, 4)
    except KeyError as error:
        problem = f"{error.args[0]!r} is missing, or no image or category of this split"
        hint = f"give COCO results made on {split.dataset}/{split.split}"
        raise BadDetections(problem, hint) from error
    scores = np.asarray([one.get("score", 1.0) for one in detections], np.float64)
    _check_finite(boxes, scores)
    image, label = np.asarray(integers, np.int64).reshape(-1, 2).T
    return DetectionTable(image, from_xywh(boxes), scores, labels=label)


def _check_finite(boxes: np.ndarray, scores: np.ndarray) -> None:
    strange = ~(np.isfinite(boxes).all(1) & np.isfinite(scores))
    if strange.any():
        problem = f"entry {int(np.argmax(strange))} has a box or score that is not finite"
        raise BadDetections(problem, "look for NaN where they were made")


def to_coco(
    record: TagRecord | TruthRecord,
    split: Split,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    digits: int | None = 2,
) -> list[dict]:
    """COCO results of one image, in the order given.

    boxes `[n, 4]`, x1 y1 x2 y2 in pixels of the image; scores `[n]`; labels int `[n]`, class
    indices. digits: decimals that x, y, width and height are rounded to (None: all are written).
    Scores have `SCORE_DIGITS` significant digits.
    """
    columns = to_xywh(np.asarray(boxes).reshape(-1, 4)).tolist(), scores, labels
    return [
        {
            "image_id": record.image_id,
            "file_name": record.file_name,
            "category_id": split.category_ids[int(label)],
            "bbox": box if digits is None else [round(side, digits) for side in box],
            "score": float(f"{score:.{SCORE_DIGITS}g}"),
        }
        for box, score, label in zip(*columns, strict=True)
    ]


def annotation(image_id: int, category_id: int, box: np.ndarray, **more: Any) -> dict:
    """One annotation of a COCO file, not a crowd and without its id (`annotation_file` numbers).

    box `[4]`, x1 y1 x2 y2 in pixels. more: other keys, or another iscrowd.
    """
    x, y, width, height = to_xywh(box).tolist()
    row = {"image_id": image_id, "category_id": category_id, "bbox": [x, y, width, height]}
    return {**row, "area": width * height, "iscrowd": 0, **more}


def annotation_file(split: Split, annotations: Iterable[Mapping], description: str = "") -> dict:
    """A COCO annotation file of a split, which pycocotools loads; ids count from 1."""
    return {
        "info": {"description": description},
        "images": [
            {"id": r.image_id, "file_name": r.file_name, "width": r.width, "height": r.height}
            for r in split.records
        ],
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, 1)],
        "categories": [
            {"id": category, "name": name}
            for category, name in zip(split.category_ids, split.classes, strict=True)
        ],
    }


def category_ids(path: Path, classes: Sequence[str]) -> tuple[int, ...]:
    """The ids that a file of `annotation_file` has for these classes; `BadFile` when it has not."""
    categories = read_json(path).get("categories", ())
    ids = {one["name"]: one["id"] for one in categories}
    if not set(classes) <= ids.keys():
        missing = sorted(set(classes) - ids.keys())[0]
        raise BadFile(path, f"has no category {missing}", "run the command that made it again")
    return tuple(ids[name] for name in classes)
