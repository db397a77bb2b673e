"""Detections in COCO's form, in and out: the one place where it is read, checked and written.

Results are dictionaries `{"image_id", "file_name", "category_id", "bbox", "score"}`, bbox
as `[x, y, width, height]` in pixels of the upright image. An annotation file is `{"info", "images",
"annotations", "categories"}`.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from weaksam_jax.boxes import to_xywh
from weaksam_jax.data.detection_columns import (
    Columns,
    DetectionTable,
    Masks,
    Split,
    joined,
    label_of,
)
from weaksam_jax.data.json_parts import NotPlain, list_parts
from weaksam_jax.data.json_rows import Rows
from weaksam_jax.data.records import TagRecord, TruthRecord
from weaksam_jax.errors import BadFile, BadInput
from weaksam_jax.files import atomic_path, check_whole, read_json

__all__ = [
    "BadDetections",
    "DetectionTable",
    "Results",
    "annotation",
    "annotation_arrays",
    "annotation_file",
    "annotation_rows",
    "as_arrays",
    "category_ids",
    "label_of",
    "naming",
    "read_detections",
    "to_coco",
    "write_results",
]

SCORE_DIGITS = 9  # significant: all of a float32, so that no two scores become a tie
# COCO results as a list of dictionaries, or what `read_detections` made of a file of them.
Results = Sequence[Mapping] | DetectionTable


class BadDetections(BadInput):
    """A fault in detections whose file is not known here; `naming` names it."""

    def __init__(self, problem: str, hint: str):
        super().__init__("detections", problem, hint)


def read_detections(
    path: str | Path, split: Split, masks: Masks = "read", scores: bool = True
) -> DetectionTable:
    """COCO results, or the annotations of a COCO file, of images of a split.

    What is written otherwise but clear ("0.9", names of images, polygons) is read; an entry with
    `segmentation` and without bbox gets the box around its mask. masks: whether those are kept, or
    an entry without is refused. scores: whether one without score is; if not, its score is 1.

    A long list of results is read in parts, so that beside the table some thousands of them are in
    memory. Raises `BadFile` that names the file, the entry (counted from 0), the field and its
    fault.
    """
    columns, bad = Columns(split), partial(BadFile, path)

    def table(values: list, name: str = "", first: int = 0) -> DetectionTable:
        return columns.table(Rows(values, name, bad, first=first), masks=masks, scores=scores)

    try:
        tables, count = [], 0
        for values in list_parts(path):
            tables.append(table(values, first=count))
            count += len(values)
        return joined(tables)
    except NotPlain:
        return table(*_listed(path))


def _listed(path: str | Path) -> tuple[list, str]:
    """(the results in a file of any form, how they are called)."""
    found, name = read_json(path), ""
    if isinstance(found, dict):
        found, name = found.get("annotations"), "annotations"
    if not isinstance(found, list):
        hint = "give a JSON list of results, or a file with annotations"
        raise BadFile(path, "is no COCO results file", hint)
    return found, name


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """`BadDetections` raised inside becomes a `BadFile` of that file."""
    try:
        yield
    except BadDetections as error:
        raise BadFile(path, error.problem, error.hint) from error


def annotation_rows(data: Any) -> Rows:
    """The annotations of a COCO annotation dictionary; `BadDetections` without a list of them."""
    rows = data.get("annotations") if isinstance(data, Mapping) else None
    if not isinstance(rows, list):
        raise BadDetections("has no list of annotations", "give a COCO annotation file")
    return Rows(rows, "annotations", BadDetections)


def annotation_arrays(data: Any, split: Split, masks: bool = False) -> DetectionTable:
    """As `as_arrays`, of a COCO annotation dictionary, whose objects need no score."""
    kept: Masks = "needed" if masks else "unread"
    return Columns(split).table(annotation_rows(data), masks=kept, scores=False)


def as_arrays(
    detections: Results, split: Split, scores: bool = True, masks: bool = False
) -> DetectionTable:
    """COCO results (or annotations) of the images of a split; a table of them as it is.

    scores: whether each must have one; where not, 1 stands for it. masks: whether each must have
    `segmentation`, which is read then. Raises `BadDetections` that names the entry and field for a
    detection whose image or category the split does not have, and for values of other types; and
    for a table of another split, or without the masks.
    """
    if not isinstance(detections, DetectionTable):
        rows, kept = Rows(detections, "", BadDetections), "needed" if masks else "unread"
        return Columns(split).table(rows, masks=kept, scores=scores)
    ids = tuple(record.image_id for record in split.records), tuple(split.category_ids)
    if ids != (detections.images, detections.categories):
        name = f"{split.dataset}/{split.split}"
        raise BadDetections(f"were read for another split than {name}", "read them for this one")
    if masks and (detections.masks is None or None in detections.masks):
        raise BadDetections("were read without masks", 'read them with masks="needed"')
    return detections


def write_results(path: str | Path, results: Iterable[Sequence[Mapping]]) -> int:
    """Writes COCO results as `write_json` writes the list of them all, but a part at a time.

    results: lists of results (`to_coco`) in the order of the file. Returns how many there are.
    """
    count = 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("[")
        for rows in results:
            text = json.dumps(rows, allow_nan=False)
            check_whole(path, text, rows)
            if rows:
                file.write((", " if count else "") + text[1:-1])
            count += len(rows)
        file.write("]\n")
    return count


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
    found, hint = read_json(path), "run the command that made it again"
    values = found.get("categories") if isinstance(found, dict) else None
    if not isinstance(values, list):
        raise BadFile(path, "has no list of categories", hint)
    rows = Rows(values, "categories", partial(BadFile, path))
    ids = dict(zip(rows.texts("name"), rows.integers("id").tolist(), strict=True))
    missing = [name for name in classes if name not in ids]
    if missing:
        raise BadFile(path, f"has no category {missing[0]}", hint)
    return tuple(ids[name] for name in classes)
