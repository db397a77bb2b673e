"""Columns of detections: rows in COCO's form, checked and read into arrays."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np

from weaksam_jax.boxes import from_xywh
from weaksam_jax.data.formats.voc_lists import voc_image_id
from weaksam_jax.data.json_rows import Row, Rows, as_integer, plain_integers, plain_numbers, shown
from weaksam_jax.data.masks import boxes_of, plain_masks, read_mask
from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.errors import BadInput

Split = TagSplit | TruthSplit
# What becomes of `segmentation`: not looked at; checked, for the box of a row without `bbox`; kept
# as well; kept, and each row must have one.
Masks = Literal["unread", "read", "kept", "needed"]


@dataclass(frozen=True)
class DetectionTable:
    """Detections of a split as columns, about 50 bytes each: image int32 `[N]`, index into the
    split's records; xywh float64 `[N, 4]`, the boxes as they were written; scores float64 `[N]`;
    labels int32 `[N]`, class indices; masks: COCO RLE (counts str) or None of each, None when they
    were not asked for. images, categories: the ids of the split that they belong to."""

    image: np.ndarray
    xywh: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    images: tuple[int, ...]
    categories: tuple[int, ...]
    masks: list[dict | None] | None = None

    def __len__(self) -> int:
        return len(self.image)

    @property
    def boxes(self) -> np.ndarray:
        """float64 `[N, 4]`, x1 y1 x2 y2."""
        return from_xywh(self.xywh)

    def of_images(self) -> list[np.ndarray]:
        """The rows of each image of the split, in the order given."""
        return groups(self.image, len(self.images))

    def in_images(self, chosen: np.ndarray) -> "DetectionTable":
        """Those in some images of the split, as detections of a split of these alone.

        chosen: bool `[images]`."""
        rows = np.flatnonzero(chosen[self.image])
        place = (np.cumsum(chosen) - 1).astype(np.int32)
        ids = tuple(one for one, kept in zip(self.images, chosen, strict=True) if kept)
        return DetectionTable(
            place[self.image[rows]],
            self.xywh[rows],
            self.scores[rows],
            labels=self.labels[rows],
            images=ids,
            categories=self.categories,
            masks=None if self.masks is None else [self.masks[row] for row in rows],
        )

    def of_classes(self) -> list[np.ndarray]:
        """The rows of each class, in the order given."""
        return groups(self.labels, len(self.categories))


def groups(keys: np.ndarray, count: int) -> list[np.ndarray]:
    """The places of each of the keys 0 to count - 1 in `keys` `[N]`, rising."""
    order = np.argsort(keys, kind="stable")
    ends = np.searchsorted(keys[order], np.arange(1, count))
    return np.split(order, ends) if count else []


def joined(tables: Sequence[DetectionTable]) -> DetectionTable:
    """One or more tables of a split as one."""
    names = ("image", "xywh", "scores", "labels")
    columns = {name: np.concatenate([getattr(one, name) for one in tables]) for name in names}
    masks = None
    if tables[0].masks is not None:
        masks = [mask for one in tables for mask in one.masks]
    return DetectionTable(
        **columns, images=tables[0].images, categories=tables[0].categories, masks=masks
    )


def label_of(split: Split) -> dict[int, int]:
    """The class index of every category id of a split."""
    return {category: label for label, category in enumerate(split.category_ids)}


class Columns:
    """Reads rows of detections of one split, any number of times."""

    def __init__(self, split: Split):
        self.split = split
        self.images = tuple(record.image_id for record in split.records)
        self._places = {image_id: index for index, image_id in enumerate(self.images)}
        self._labels = label_of(split)

    def table(self, rows: Rows, *, masks: Masks, scores: bool = True) -> DetectionTable:
        """scores: whether each row must have one; where not, 1 stands for it. Raises what
        `rows.bad` makes for a fault in a row, and for an image or a category that the split does
        not have."""
        image, labels = self._image(rows), self._label(rows)
        seen, needed = masks != "unread", masks == "needed"
        shapes = self._masks(rows, image, needed=needed) if seen else None
        return DetectionTable(
            image,
            _boxes(rows, shapes),
            _scores(rows, scores),
            labels=labels,
            images=self.images,
            categories=tuple(self.split.category_ids),
            masks=shapes if masks in ("kept", "needed") else None,
        )

    @cached_property
    def _names(self) -> "_Names":
        return _Names(self.split)

    def _image(self, rows: Rows) -> np.ndarray:
        """int32 `[N]`: the record of each row, whose image_id is its id or its name."""

        def one(row: Row) -> int:
            return row.read("image_id", self._names.number)

        ids = rows.column("image_id", plain_integers, one)
        return self._known(rows, "image", ids, places=self._places)

    def _label(self, rows: Rows) -> np.ndarray:
        ids = rows.integers("category_id")
        return self._known(rows, "category", ids, places=self._labels)

    def _known(
        self, rows: Rows, what: str, ids: Iterable[int], places: Mapping[int, int]
    ) -> np.ndarray:
        split = self.split

        def unknown(index: int) -> tuple[str, str]:
            given, name = rows.values[index][f"{what}_id"], f"{split.dataset}/{split.split}"
            problem = f"{what}_id {shown(given)}, which {name} does not have"
            return problem, "use detections made on this split"

        ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
        return rows.places(ids, places, unknown).astype(np.int32)

    def _masks(self, rows: Rows, image: np.ndarray, needed: bool) -> list[dict | None]:
        """COCO RLE of each row, None for a row without."""
        shapes = rows.raw("segmentation")
        if not needed and all(one is None or _is_empty(one) for one in shapes):
            return [None] * len(rows)
        records = [self.split.records[index] for index in image.tolist()]
        sizes = [[one.height, one.width] for one in records]
        if plain_masks(shapes, sizes):
            return shapes
        return [_mask(row, size, needed) for row, size in zip(rows, sizes, strict=True)]


def _scores(rows: Rows, needed: bool) -> np.ndarray:
    if needed:
        return rows.numbers("score")
    read = partial(Row.number, name="score", default=1.0)
    return np.asarray(rows.column("score", plain_numbers, read), np.float64)


def _boxes(rows: Rows, masks: list[dict | None] | None) -> np.ndarray:
    """float64 `[N, 4]`, x y width height; those around the masks where a row has no bbox."""
    try:
        return rows.boxes("bbox")
    except BadInput:
        if masks is None or all(one is not None for one in rows.raw("bbox")):
            raise
    return boxes_of(rows, masks)


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
