"""Detections in COCO's form, in and out: the one place where it is read, checked and written.

Results are dictionaries `{"image_id", "file_name", "category_id", "bbox", "score"}`, bbox
as `[x, y, width, height]` in pixels of the upright image. An annotation file is `{"info", "images",
"annotations", "categories"}`.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from weaksam_jax.boxes import from_xywh, to_xywh
from weaksam_jax.data.formats.voc_lists import voc_image_id
from weaksam_jax.data.json_rows import Row, Rows, as_integer, plain_integers, plain_numbers, shown
from weaksam_jax.data.masks import boxes_of, plain_masks, read_mask
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
    float64 `[N, 4]`, x1 y1 x2 y2; scores float64 `[N]`; labels int64 `[N]`, class indices; xywh
    float64 `[N, 4]`, the boxes as they were written; masks: COCO RLE (counts str) or None of each,
    None when they were not asked for."""

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    xywh: np.ndarray
    masks: list[dict | None] | None = None


def read_detections(
    path: str | Path, split: Split, masks: bool = False, scores: bool = True
) -> list[dict]:
    """COCO results, or the annotations of a COCO file, of images of a split.

    Each has image_id, category_id, bbox and score as the plain types: what is written otherwise but
    clear ("0.9", names of images, polygons) is converted. An entry with `segmentation` and without
    bbox gets the box around its mask. Other keys stay as they are.

    masks: whether an entry without `segmentation` is refused. scores: whether one without score is;
    if not, its score is 1. Raises `BadFile` that names the file,
    the entry (counted from 0), the field and its fault.
    """
    found, name = read_json(path), ""
    if isinstance(found, dict):
        found, name = found.get("annotations"), "annotations"
    if not isinstance(found, list):
        hint = "give a JSON list of results, or a file with annotations"
        raise BadFile(path, "is no COCO results file", hint)
    rows = Rows(found, name, partial(BadFile, path))
    table = _table(rows, split, masks=masks, see_masks=True, scores=scores)
    _mend(rows, table, split)
    return found


def _mend(rows: Rows, table: DetectionTable, split: Split) -> None:
    """Puts what was read in place of values that are written otherwise."""
    columns = {
        "image_id": lambda i: split.records[table.image[i]].image_id,
        "category_id": lambda i: split.category_ids[table.labels[i]],
        "bbox": lambda i: table.xywh[i].tolist(),
        "score": lambda i: float(table.scores[i]),
        "segmentation": lambda i: table.masks[i],
    }
    for field in rows.mended:
        for index, one in enumerate(rows.values):
            value = columns[field](index)
            if value is not None or field in one:
                one[field] = value


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


def by_image(
    detections: Iterable[Mapping], split: Split, scores: bool = False
) -> dict[int, list[Mapping]]:
    """Results or annotations by image id, in the order given; every image of the split has a list.

    scores: whether each must have one. Raises `BadDetections` for an image or a category that the
    split does not have, and for a fault in a box or score.
    """
    detections = list(detections)
    table = as_arrays(detections, split, scores=scores)
    found: dict[int, list[Mapping]] = {record.image_id: [] for record in split.records}
    for one, index in zip(detections, table.image.tolist(), strict=True):
        found[split.records[index].image_id].append(one)
    return found


def annotation_rows(data: Any) -> Rows:
    """The annotations of a COCO annotation dictionary; `BadDetections` without a list of them."""
    rows = data.get("annotations") if isinstance(data, Mapping) else None
    if not isinstance(rows, list):
        raise BadDetections("has no list of annotations", "give a COCO annotation file")
    return Rows(rows, "annotations", BadDetections)


def annotation_arrays(data: Any, split: Split, masks: bool = False) -> DetectionTable:
    """As `as_arrays`, of a COCO annotation dictionary, whose objects need no score."""
    return _table(annotation_rows(data), split, masks=masks, see_masks=masks, scores=False)


def as_arrays(
    detections: Sequence[Mapping], split: Split, scores: bool = True, masks: bool = False
) -> DetectionTable:
    """COCO results (or annotations) of the images of a split.

    scores: whether each must have one; where not, 1 stands for it. masks: whether each must have
    `segmentation`, which is read then. Raises `BadDetections` that names the entry and field for a
    detection whose image or category the split does not have, and for values of other types.
    """
    rows = Rows(detections, "", BadDetections)
    return _table(rows, split, scores=scores, masks=masks, see_masks=masks)


def _table(
    rows: Rows, split: Split, masks: bool, see_masks: bool, scores: bool = True
) -> DetectionTable:
    image, labels = _images(rows, split), _labels(rows, split)
    shapes = _masks(rows, split, image, needed=masks) if see_masks else None
    xywh = _boxes(rows, shapes)
    score = _scores(rows, scores)
    return DetectionTable(image, from_xywh(xywh), score, labels=labels, xywh=xywh, masks=shapes)


def _scores(rows: Rows, needed: bool) -> np.ndarray:
    if needed:
        return rows.numbers("score")
    read = partial(Row.number, name="score", default=1.0)
    return np.asarray(rows.column("score", plain_numbers, read), np.float64)


def _images(rows: Rows, split: Split) -> np.ndarray:
    """int64 `[N]`: the record of each row, whose image_id is its id or its name."""
    names = _Names(split)
    ids = rows.column("image_id", plain_integers, lambda row: row.read("image_id", names.number))
    places = {record.image_id: index for index, record in enumerate(split.records)}
    return _places(rows, "image", ids, places=places, split=split)


def _labels(rows: Rows, split: Split) -> np.ndarray:
    ids = rows.integers("category_id")
    return _places(rows, "category", ids, places=label_of(split), split=split)


def _places(
    rows: Rows, what: str, ids: Iterable[int], places: Mapping[int, int], split: Split
) -> np.ndarray:
    def unknown(index: int) -> tuple[str, str]:
        given, name = rows.values[index][f"{what}_id"], f"{split.dataset}/{split.split}"
        problem = f"{what}_id {shown(given)}, which {name} does not have"
        return problem, "use detections made on this split"

    ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
    return rows.places(ids, places, unknown)


def _boxes(rows: Rows, masks: list[dict | None] | None) -> np.ndarray:
    """float64 `[N, 4]`, x y width height; those around the masks where a row has no bbox."""
    try:
        return rows.boxes("bbox")
    except BadInput:
        if masks is None or all(one is not None for one in rows.raw("bbox")):
            raise
    rows.mended.add("bbox")
    return boxes_of(rows, masks)


def _masks(rows: Rows, split: Split, image: np.ndarray, needed: bool) -> list[dict | None]:
    """COCO RLE of each row, None for a row without."""
    shapes = rows.raw("segmentation")
    if not needed and all(one is None or _is_empty(one) for one in shapes):
        if any(map(_is_empty, shapes)):
            rows.mended.add("segmentation")
        return [None] * len(rows)
    sizes = [[one.height, one.width] for one in split.records]
    sizes = [sizes[index] for index in image.tolist()]
    if plain_masks(shapes, sizes):
        return shapes
    found = [_mask(row, size, needed) for row, size in zip(rows, sizes, strict=True)]
    rows.mended.add("segmentation")
    return found


def _is_empty(shape: Any) -> bool:
    """Whether it is a list of no polygons; other empty values are no masks at all."""
    return isinstance(shape, list) and not shape


def _mask(row: Row, size: Sequence[int], needed: bool) -> dict | None:
    read = partial(read_mask, height=size[0], width=size[1])
    mask = row.read("segmentation", read, default=None)
    if needed and mask is None:
        raise row.fail("has no segmentation", "give COCO results with masks")
    return mask


class _Names:
    """Ids of a split's images by name: the file's, or that without its suffix where this is one
    image's alone, or VOC's name of a number."""

    def __init__(self, split: Split):
        stems = {r.image_id: str(PurePosixPath(r.file_name).with_suffix("")) for r in split.records}
        often = Counter(stems.values())
        self._known = {stem: image for image, stem in stems.items() if often[stem] == 1}
        self._known |= {record.file_name: record.image_id for record in split.records}
        self._ids = set(stems)

    def number(self, value: Any) -> int:
        """The id that an image_id means; `ValueError` when it can mean two images or none."""
        if not isinstance(value, str):
            return as_integer(value)
        named = self._known.get(value)
        number = _number(value) if named is None else _decimal(value)
        if number in self._ids and named not in (None, number):
            problem = f"is the name of image {named} and the id of another ({shown(value)})"
            raise ValueError(f"{problem}: write numbers, or names with suffix")
        found = number if named is None else named
        if found is None:
            raise ValueError(f"is no image's id or name ({shown(value)})")
        return found


def _number(text: str) -> int | None:
    """The id that a number or VOC's name is."""
    found = voc_image_id(text.strip())
    try:
        return as_integer(text) if found is None else found
    except ValueError:
        return None


def _decimal(text: str) -> int | None:
    """The integer that a text without leading zeros is."""
    try:
        found = as_integer(text)
    except ValueError:
        return None
    return found if str(found) == text.strip() else None


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
