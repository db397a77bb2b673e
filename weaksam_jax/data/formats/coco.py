"""Reader of COCO folders: `annotations/*.json` and images below `images/` (or beside it).

The split is found by the name of the JSON: `instances_train2017.json` is the split train2017, and
`train` finds it too while it is the only one that starts so. `coco_tags` looks at image and
category ids and the crowd flag only; `coco_truth` alone looks at boxes and masks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from weaksam_jax.boxes import from_xywh
from weaksam_jax.data.formats.checks import check_inside, clean_name
from weaksam_jax.data.formats.file_index import FileIndex, first_twins
from weaksam_jax.data.images import image_size
from weaksam_jax.data.json_rows import Row, Rows, shown
from weaksam_jax.data.masks import boxes_of, read_mask
from weaksam_jax.data.records import TagRecord, TagSplit, TruthRecord, TruthSplit
from weaksam_jax.errors import BadFile, BadInput
from weaksam_jax.files import read_json
from weaksam_jax.progress import progress_bar

# Annotation files of COCO's other tasks: no categories of things, or no annotations.
_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
# COCO's corners are rounded to 0.01 pixel and polygons may follow the last row's far side.
_OVERHANG = 1.0


@dataclass(frozen=True)
class _Content:
    """A checked annotation file. image, labels: int64 `[N]`, the image and the class (both as
    places in their lists) of each annotation; crowd: bool `[N]`."""

    root: Path
    split: str
    images: Rows
    ids: list[int]
    names: list[str]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    annotations: Rows
    image: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray

    @property
    def about(self) -> dict[str, Any]:
        """What a split of tags and one of truth say alike."""
        names = {"classes": self.classes, "category_ids": self.category_ids}
        return {"dataset": "COCO", "split": self.split, **names}


def find_coco(path: str | Path) -> Path | None:
    """The folder at `path` if it has `annotations/*.json`, else None."""
    path = Path(path).resolve()
    return path if _files(path) else None


def coco_split_names(root: Path) -> dict[str, str]:
    """Training and test split: the lists that start with train, and with val (or else test)."""
    files = _files(root)
    train = [name for name in files if name.startswith("train")]
    test = [name for name in files if name.startswith("val")]
    test = test or [name for name in files if name.startswith("test")]
    if len(train) != 1 or len(test) != 1:
        problem = f"has no one training and one validation file (splits: {', '.join(files)})"
        hint = "keep one instances_train*.json and one instances_val*.json there"
        raise BadInput(root / "annotations", problem, hint)
    return {"train": train[0], "test": test[0]}


def coco_tags(root: Path, split: str) -> TagSplit:
    """Images and tags of a split; a tag is a category with an annotation that is not crowd.

    An image that has nothing but crowds is `uncertain`.
    """
    content = _load(root, split)
    tags: list[set[int]] = [set() for _ in content.ids]
    columns = content.image.tolist(), content.labels.tolist(), content.crowd.tolist()
    for image, label, crowd in zip(*columns, strict=True):
        if not crowd:
            tags[image].add(label)
    crowded = set(content.image[content.crowd].tolist())
    records = []
    for index, photo in enumerate(_photos(content)):
        uncertain = not tags[index] and index in crowded
        records.append(TagRecord(**photo, tags=tuple(sorted(tags[index])), uncertain=uncertain))
    return TagSplit(**content.about, records=tuple(records))


def coco_truth(root: Path, split: str) -> TruthSplit:
    """Boxes, crowd flags and masks (polygons or RLE, as RLE with counts str) of a split.

    An annotation with a mask and without bbox has the box around its mask. An image without any
    annotation has no masks to miss (`masks` is empty, and not None) where others have some.
    """
    content = _load(root, split)
    rows = content.annotations
    whole, masked = all(one is not None for one in rows.raw("bbox")), any(rows.raw("segmentation"))
    boxes = rows.boxes("bbox") if whole else None
    order = np.argsort(content.image, kind="stable")
    bounds = np.searchsorted(content.image[order], np.arange(len(content.ids) + 1))
    records = []
    for index, photo in enumerate(_photos(content)):
        width, height = photo["width"], photo["height"]
        own = order[bounds[index] : bounds[index + 1]]
        masks = tuple(_mask(rows[i], width, height) for i in own.tolist())
        xywh = boxes_of((rows[i] for i in own.tolist()), masks) if boxes is None else boxes[own]
        _check_inside(rows, own, xywh, width=width, height=height)
        records.append(
            TruthRecord(
                **photo,
                boxes=from_xywh(xywh),
                labels=content.labels[own].astype(np.int32),
                difficult=np.zeros(len(own), bool),
                crowd=content.crowd[own],
                masks=masks if masked and (any(masks) or not masks) else None,
                written=xywh,
            )
        )
    return TruthSplit(**content.about, records=tuple(records))


def coco_truth_files(root: Path, split: str) -> list[Path]:
    """The file that `coco_truth` reads."""
    return [_find_split(root, split)[1]]


def _files(root: Path) -> dict[str, Path]:
    """Split name -> annotation file."""
    files: dict[str, Path] = {}
    for path in sorted((root / "annotations").glob("*.json")):
        if not path.name.startswith((".", *_OTHER_TASKS)):
            name = path.stem.removeprefix("instances_")
            if (other := files.setdefault(name, path)) != path:
                problem = f"and {path.name} are both of the split {name}"
                raise BadInput(other, problem, "rename one of them, or move it elsewhere")
    return files


def _find_split(root: Path, split: str) -> tuple[str, Path]:
    files = _files(root)
    names = [split] if split in files else [name for name in files if name.startswith(split)]
    if len(names) != 1:
        problem = "has no annotations" if not names else f"has {' and '.join(names)}"
        hint = f"splits here: {', '.join(files)}"
        raise BadInput(root / "annotations", f"{problem} for split {split}", hint)
    return names[0], files[names[0]]


def _load(root: Path, split: str) -> _Content:
    """The checked JSON of a split; classes in the order of their ids."""
    split, path = _find_split(root, split)
    data, bad = read_json(path), partial(BadFile, path)
    images, annotations, categories = (
        Rows(_list(path, data, key), key, bad) for key in ("images", "annotations", "categories")
    )
    for rows in (images, categories):
        if not len(rows):
            problem = f"lists no {rows.name} (empty split)"
            raise BadInput(path, problem, f"add {rows.name}, or drop the file")
    ids, names = _unique(images, "id", images.integers("id").tolist()), _file_names(images, path)
    category_ids = _unique(categories, "id", categories.integers("id").tolist())
    classes = [
        clean_name(name, path, f"categories[{index}]")
        for index, name in enumerate(categories.texts("name"))
    ]
    _unique(categories, "name", classes)
    order = sorted(range(len(classes)), key=category_ids.__getitem__)
    classes = tuple(classes[i] for i in order)
    category_ids = tuple(category_ids[i] for i in order)
    return _Content(
        root,
        split,
        images,
        ids=ids,
        names=names,
        classes=classes,
        category_ids=category_ids,
        annotations=annotations,
        image=_places(annotations, "image_id", ids),
        labels=_places(annotations, "category_id", category_ids),
        crowd=annotations.flags("iscrowd"),
    )


def _list(path: Path, data: Any, key: str) -> list:
    rows = data.get(key) if isinstance(data, dict) else None
    if not isinstance(rows, list):
        what = f"{key} is not a list of objects" if isinstance(data, dict) else "is no object"
        raise BadInput(path, what, "give a COCO instances file")
    return rows


def _unique(rows: Rows, field: str, values: list) -> list:
    """The values, of which each must stand once."""
    first: dict[Any, int] = {}
    for index, value in enumerate(values):
        if first.setdefault(value, index) != index:
            problem = f"{field} {shown(value)} is twice in {rows.name}"
            hint = f"{rows.name}[{first[value]}] has it, too: give each its own"
            raise rows[index].fail(problem, hint)
    return values


def _file_names(images: Rows, path: Path) -> list[str]:
    """The names with "/" between folders; each lies in the data set and is another file."""
    names = images.texts("file_name")
    names = [check_inside(n, path, f"images[{i}].file_name") for i, n in enumerate(names)]
    return _unique(images, "file_name", names)


def _places(annotations: Rows, field: str, ids: Sequence[int]) -> np.ndarray:
    """int64 `[N]`: where the id of each annotation stands in `ids`."""
    given = annotations.integers(field)
    listed = {"image_id": "images", "category_id": "categories"}[field]

    def unknown(index: int) -> tuple[str, str]:
        return f"{field} {given[index]} is not in {listed}", f"add it to {listed} or correct it"

    known = {one: index for index, one in enumerate(ids)}
    return annotations.places(given.tolist(), known, unknown)


def _photos(content: _Content) -> Iterator[dict[str, Any]]:
    """What records of tags and of truth say alike of each image, whose size in the file must be its
    own."""
    bar = progress_bar(content.names, f"read {content.split}", delay=3)
    images = content.root / "images"
    places = images / content.split, images, content.root / content.split, content.root
    folders = [FileIndex(place) for place in places]
    paths = [_image_path(folders, name) for name in content.names]
    if (twins := first_twins(paths)) is not None:
        one, other = (content.images[index] for index in twins)
        hint = f"{one.entry} has it, too: give each its own"
        raise other.fail(f"file_name is another name of {paths[twins[0]]}", hint)
    for index, (name, where) in enumerate(zip(bar, paths, strict=True)):
        width, height = image_size(where)
        row = content.images[index]
        stated = row.integer("width", default=width), row.integer("height", default=height)
        if stated != (width, height):
            problem = f"width and height are said to be {stated[0]} x {stated[1]}"
            hint = f"{where} is {width} x {height} upright; correct its size and annotations"
            raise row.fail(problem, hint)
        known = {"image_id": content.ids[index], "file_name": name, "path": where}
        yield {**known, "width": width, "height": height}


def _image_path(folders: Sequence[FileIndex], name: str) -> Path:
    """The image in the first folder that has it; where it should be when none has."""
    found = (folder.file(name) for folder in folders)
    return next((path for path in found if path is not None), folders[1].root / name)


def _mask(row: Row, width: int, height: int) -> dict | None:
    return row.read("segmentation", partial(read_mask, height=height, width=width), default=None)


def _check_inside(rows: Rows, own: np.ndarray, boxes: np.ndarray, width: int, height: int) -> None:
    """Boxes `[n, 4]`, x y width height, lie in their image. COCO has a few of no width."""
    far = boxes[:, :2] + boxes[:, 2:]
    inside = (boxes[:, :2] >= -_OVERHANG) & (far <= np.asarray([width, height]) + _OVERHANG)
    if not inside.all():
        row = rows[int(own[np.argmin(inside.all(1))])]
        hint = f"correct it ([x, y, width, height]; the image is {width} x {height})"
        raise row.fail(f"bbox {shown(row.values.get('bbox'))} lies outside the image", hint)
