"""Reader of COCO folders: `annotations/*.json` and images below `images/` (or beside it).

The split is found by the name of the JSON: `instances_train2017.json` is the split train2017, and
`train` finds it too while it is the only one that starts so. `coco_tags` looks at image and
category ids and the crowd flag only; `coco_truth` alone looks at boxes and masks.
"""

from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from weaksam_jax.data.formats.checks import first_duplicate
from weaksam_jax.data.images import image_size
from weaksam_jax.data.records import TagRecord, TagSplit, TruthRecord, TruthSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_json

# Annotation files of COCO's other tasks: no categories of things, or no annotations.
_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
# COCO's corners are rounded to 0.01 pixel and polygons may follow the last row's far side.
_OVERHANG = 1.0


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
    split, path = _find_split(root, split)
    data, classes, category_ids = _load(path)
    index = {category: i for i, category in enumerate(category_ids)}
    tags: dict[int, set[int]] = {image["id"]: set() for image in data["images"]}
    crowded: set[int] = set()
    for annotation in data["annotations"]:
        label = _label(path, annotation, index)
        found = _of_image(path, annotation, tags)
        if annotation.get("iscrowd"):
            crowded.add(annotation["image_id"])
        else:
            found.add(label)
    records = []
    for image in tqdm(data["images"], desc=f"read {split}", unit="images", delay=3):
        where = _image_path(root, split, image["file_name"])
        width, height = image_size(where)
        found = tuple(sorted(tags[image["id"]]))
        uncertain = not found and image["id"] in crowded
        records.append(
            TagRecord(
                image["id"],
                image["file_name"],
                where,
                width=width,
                height=height,
                tags=found,
                uncertain=uncertain,
            )
        )
    return TagSplit("COCO", split, classes, category_ids=category_ids, records=tuple(records))


def coco_truth(root: Path, split: str) -> TruthSplit:
    """Boxes, crowd flags and masks (polygons or RLE, as RLE with counts str) of a split."""
    split, path = _find_split(root, split)
    data, classes, category_ids = _load(path)
    index = {category: i for i, category in enumerate(category_ids)}
    groups: dict[int, list[dict]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        _of_image(path, annotation, groups).append(annotation)
    records = []
    for image in tqdm(data["images"], desc=f"read {split}", unit="images", delay=3):
        where = _image_path(root, split, image["file_name"])
        records.append(
            _truth_record(path, where, image, annotations=groups[image["id"]], index=index)
        )
    return TruthSplit("COCO", split, classes, category_ids=category_ids, records=tuple(records))


def coco_truth_files(root: Path, split: str) -> list[Path]:
    """The file that `coco_truth` reads."""
    return [_find_split(root, split)[1]]


def _files(root: Path) -> dict[str, Path]:
    """Split name -> annotation file."""
    paths = sorted((root / "annotations").glob("*.json"))
    paths = [path for path in paths if not path.name.startswith(_OTHER_TASKS)]
    return {path.stem.removeprefix("instances_"): path for path in paths}


def _find_split(root: Path, split: str) -> tuple[str, Path]:
    files = _files(root)
    names = [split] if split in files else [name for name in files if name.startswith(split)]
    if len(names) != 1:
        problem = "has no annotations" if not names else f"has {' and '.join(names)}"
        hint = f"splits here: {', '.join(files)}"
        raise BadInput(root / "annotations", f"{problem} for split {split}", hint)
    return names[0], files[names[0]]


def _load(path: Path) -> tuple[dict[str, Any], tuple[str, ...], tuple[int, ...]]:
    """The checked JSON, its class names and category ids in the order of the ids."""
    data = read_json(path)
    needed = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id")}
    needed["categories"] = ("id", "name")
    for key, fields in needed.items():
        rows = data.get(key) if isinstance(data, dict) else None
        if not isinstance(rows, list) or not all(
            isinstance(row, dict) and all(field in row for field in fields) for row in rows
        ):
            problem = f"{key} is not a list of objects with {' and '.join(fields)}"
            raise BadInput(path, problem, "give a COCO instances file")
    if not data["images"] or not data["categories"]:
        empty = "images" if not data["images"] else "categories"
        raise BadInput(path, f"lists no {empty} (empty split)", f"add {empty}, or drop the file")
    for key, field in (("images", "id"), ("images", "file_name"), ("categories", "id")):
        twice = first_duplicate(row[field] for row in data[key])
        if twice is not None:
            raise BadInput(path, f"{field} {twice} is twice in {key}", "keep one of them")
    for row in [*data["images"], *data["categories"]]:
        if not isinstance(row["id"], int):
            raise BadInput(path, f"id {row['id']!r} is no integer", "number images and categories")
    categories = sorted(data["categories"], key=lambda row: row["id"])
    return data, tuple(row["name"] for row in categories), tuple(row["id"] for row in categories)


def _label(path: Path, annotation: dict, index: dict[int, int]) -> int:
    category = annotation["category_id"]
    if category not in index:
        problem = f"category {category} of {_name(annotation)} is not in the class list"
        raise BadInput(path, problem, "add it to categories or correct it")
    return index[category]


def _of_image(path: Path, annotation: dict, groups: dict) -> Any:
    if annotation["image_id"] not in groups:
        problem = f"{_name(annotation)} is of image {annotation['image_id']}, which is not listed"
        raise BadInput(path, problem, "add the image or remove the annotation")
    return groups[annotation["image_id"]]


def _name(annotation: dict) -> str:
    return f"annotation {annotation.get('id', '?')}"


def _image_path(root: Path, split: str, name: str) -> Path:
    candidates = [root / "images" / split / name, root / "images" / name]
    candidates += [root / split / name, root / name]
    existing = [path for path in candidates if path.exists()]
    return existing[0] if existing else candidates[1]


def _truth_record(
    path: Path, where: Path, image: dict, annotations: list[dict], index: dict[int, int]
) -> TruthRecord:
    width, height = image_size(where)
    stated = (image.get("width", width), image.get("height", height))
    if stated != (width, height):
        problem = f"image {image['id']} is said to be {stated[0]} x {stated[1]}"
        hint = f"{where} is {width} x {height} upright; correct its size and annotations"
        raise BadInput(path, problem, hint)
    boxes = [_box(path, annotation, width, height=height) for annotation in annotations]
    masks = tuple(_mask(path, annotation, width, height=height) for annotation in annotations)
    return TruthRecord(
        image["id"],
        image["file_name"],
        where,
        width=width,
        height=height,
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        labels=np.asarray([_label(path, a, index) for a in annotations], np.int32),
        difficult=np.zeros(len(annotations), bool),
        crowd=np.asarray([bool(a.get("iscrowd")) for a in annotations], bool),
        masks=masks if any(mask is not None for mask in masks) else None,
    )


def _box(path: Path, annotation: dict, width: int, height: int) -> list[float]:
    """`[x1, y1, x2, y2]` of `[x, y, w, h]`, checked. COCO itself has a few boxes of no width."""
    hint = f"correct it ([x, y, width, height]; the image is {width} x {height})"
    try:
        x, y, w, h = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(path, f"bbox of {_name(annotation)} is incomplete", hint) from error
    if not (w >= 0 and h >= 0):
        raise BadInput(path, f"bbox of {_name(annotation)} is inverted", hint)
    low, right, bottom = -_OVERHANG, width + _OVERHANG, height + _OVERHANG
    if not (x >= low and y >= low and x + w <= right and y + h <= bottom):
        raise BadInput(path, f"bbox of {_name(annotation)} lies outside the image", hint)
    return [x, y, x + w, y + h]


def _mask(path: Path, annotation: dict, width: int, height: int) -> dict | None:
    """COCO RLE `{"size": [H, W], "counts": str}` of an annotation; None without segmentation."""
    shape = annotation.get("segmentation")
    if not shape:
        return None
    hint = f"correct it (polygons, or RLE of size [{height}, {width}])"
    bad = BadInput(path, f"segmentation of {_name(annotation)} cannot be read", hint)
    try:
        if isinstance(shape, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
        elif isinstance(shape["counts"], list):
            rle = coco_mask.frPyObjects(shape, height, width)
        else:
            rle = shape
        size, counts = [int(side) for side in rle["size"]], rle["counts"]
    except Exception as error:  # pycocotools raises bare Exception on what it does not know
        raise bad from error
    if size != [height, width]:
        raise bad
    return {"size": size, "counts": counts if isinstance(counts, str) else counts.decode("ascii")}
