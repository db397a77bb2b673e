"""Reader of VOCdevkit folders (VOC2007, VOC2012 and folders laid out like them).

Layout: `JPEGImages/*.jpg` (or another format), `Annotations/*.xml`, `ImageSets/Main/<split>.txt`,
and optionally `SegmentationObject/*.png` (pixel k = k-th object of the XML, 255 void) and
`classes.txt`.

`voc_tags` looks at object names and difficult flags only; `voc_truth` alone looks at boxes and
masks.
"""

import os
from pathlib import Path

import numpy as np

from weaksam_jax.data.formats.checks import read_classes
from weaksam_jax.data.formats.voc_lists import (
    VocFiles,
    VocImage,
    annotations_of_all_lists,
    classes_with_lists,
    read_list,
    voc_files,
)
from weaksam_jax.data.formats.voc_xml import box_of
from weaksam_jax.data.images import image_size, opened_image
from weaksam_jax.data.masks import encode_mask
from weaksam_jax.data.records import TagRecord, TagSplit, TruthRecord, TruthSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.progress import progress_bar

# The official classes in the devkit's (alphabetical) order.
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


def find_voc(path: str | Path) -> Path | None:
    """The VOC folder at `path` (itself, a devkit, or a folder that holds `VOCdevkit/`), or None.

    Raises `BadInput` when a devkit holds several years: the caller must name one.
    """
    path = Path(path).resolve()
    if _is_voc(path):
        return path
    for devkit in (path, path / "VOCdevkit"):
        years = [child for child in sorted(devkit.glob("VOC*")) if _is_voc(child)]
        if len(years) > 1:
            names = " and ".join(year.name for year in years)
            raise BadInput(devkit, f"holds {names}", f"name one of them, e.g. {years[0]}")
        if years:
            return years[0]
    return None


def voc_split_names(root: Path) -> dict[str, str]:
    """Training and test split: trainval and test where test has annotations, else train and val."""
    files = voc_files(root)
    splits = set(files.lists)
    if {"trainval", "test"} <= splits and os.path.exists(read_list(files, "test")[0].annotation):
        return {"train": "trainval", "test": "test"}
    for train, test in (("train", "val"), ("train", "test"), ("trainval", "val")):
        if {train, test} <= splits:
            return {"train": train, "test": test}
    raise BadInput(
        root / "ImageSets" / "Main",
        "has no pair of lists trainval and test, or train and val",
        "add trainval.txt and test.txt, one image name per line",
    )


def voc_tags(root: Path, split: str, difficult: bool = False) -> TagSplit:
    """Images and tags of a split; a tag is a class with an object that is not difficult.

    An image that has nothing but difficult objects is `uncertain`. difficult: difficult objects
    give tags, too. A split whose annotations were never published (VOC2012's test: not one file is
    there) has no tags; one for training is an error then.
    """
    files = voc_files(root)
    images, classes = read_list(files, split), _classes(files)
    index = {name: i for i, name in enumerate(classes)}
    unpublished = _unpublished(split, images)

    def tags_of(image: VocImage) -> tuple[tuple[int, ...], bool]:
        objects = () if unpublished else files.objects(image.annotation)
        labels = [_class_index(index, image.annotation, one.name) for one in objects]
        found = {
            i for i, one in zip(labels, objects, strict=True) if difficult or not one.difficult
        }
        return tuple(sorted(found)), bool(objects) and not found

    records = []
    for image in progress_bar(images, f"read {split}", delay=3):
        (width, height), name = image_size(image.path), _file_name(files, image)
        tags, uncertain = tags_of(image)
        size = {"width": width, "height": height}
        record = TagRecord(image.image_id, name, image.path, **size, tags=tags, uncertain=uncertain)
        records.append(record)
    return TagSplit(
        root.name,
        split,
        classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        records=tuple(records),
    )


def voc_truth(root: Path, split: str) -> TruthSplit | None:
    """Boxes, difficult flags and (where `SegmentationObject` has the file) masks of a split.

    None when its annotations name objects and none of them has a `<bndbox>` (tags, written as XML),
    and when they were never published, see `voc_tags`.
    """
    files = voc_files(root)
    images = read_list(files, split)
    if _unpublished(split, images) or _without_boxes(files, images):
        return None
    classes = _classes(files)
    index = {name: i for i, name in enumerate(classes)}
    bar = progress_bar(images, f"read {split}", delay=3)
    records = tuple(_truth_record(files, image, index) for image in bar)
    category_ids = tuple(range(1, len(classes) + 1))
    return TruthSplit(root.name, split, classes, category_ids=category_ids, records=records)


def voc_truth_files(root: Path, split: str) -> list[Path]:
    """The files that `voc_truth` reads boxes and masks from, those that are there."""
    files = voc_files(root)
    images = read_list(files, split)
    masks = (files.masks.by_stem(one.name, (".png",)) for one in images)
    annotations = (one.annotation for one in images if os.path.exists(one.annotation))
    return [*annotations, *(path for path in masks if path is not None)]


def _is_voc(path: Path) -> bool:
    return (path / "JPEGImages").is_dir() and (path / "ImageSets" / "Main").is_dir()


def _file_name(files: VocFiles, image: VocImage) -> str:
    """The image's path below `JPEGImages`, as on disk."""
    return image.path.relative_to(files.images.root).as_posix()


def _classes(files: VocFiles) -> tuple[str, ...]:
    """`classes.txt` if present, else VOC's twenty if all names are among them, else sorted names.

    Names are those of the per-class lists (`ImageSets/Main/<class>_<split>.txt`) where there are
    any, else of the objects in all lists, so that every split has the same classes.
    """
    listed = read_classes(files.root / "classes.txt")
    if listed is not None:
        return listed
    names = classes_with_lists(files)
    if not names:
        paths = annotations_of_all_lists(files)
        names = {one.name for path in paths for one in files.objects(path)}
    if not names:
        hint = f"add annotations, or {files.root / 'classes.txt'} with one class per line"
        raise BadInput(files.annotations.root, "names no object at all", hint)
    return VOC_CLASSES if names <= set(VOC_CLASSES) else tuple(sorted(names))


def _class_index(index: dict[str, int], annotation: Path, name: str) -> int:
    if name not in index:
        hint = f"add it to classes.txt or correct it (classes: {', '.join(index)})"
        raise BadInput(annotation, f"class {name!r} is not in the class list", hint)
    return index[name]


def _unpublished(split: str, images: list[VocImage]) -> bool:
    """Whether it is no training split and not one of its images has an annotation."""
    return not split.startswith("train") and not any(
        os.path.exists(one.annotation) for one in images
    )


def _without_boxes(files: VocFiles, images: list[VocImage]) -> bool:
    """Whether there are objects, but not one `<bndbox>` (the first one found ends the search)."""
    named = False
    for image in images:
        for item in files.objects(image.annotation):
            if item.corners is not None:
                return False
            named = True
    return named


def _truth_record(files: VocFiles, image: VocImage, index: dict[str, int]) -> TruthRecord:
    width, height = image_size(image.path)
    objects, annotation = files.objects(image.annotation), image.annotation
    boxes = [box_of(one, annotation, width, height=height) for one in objects]
    labels = [_class_index(index, annotation, one.name) for one in objects]
    path = files.masks.by_stem(image.name, (".png",))
    masks = None if path is None else _masks(path, len(boxes), width, height=height)
    return TruthRecord(
        image.image_id,
        _file_name(files, image),
        image.path,
        width=width,
        height=height,
        boxes=np.asarray(boxes, np.float64).reshape(-1, 4),
        labels=np.asarray(labels, np.int32),
        difficult=np.asarray([one.difficult for one in objects], bool),
        crowd=np.zeros(len(boxes), bool),
        masks=masks,
    )


def _masks(path: Path, objects: int, width: int, height: int) -> tuple[dict | None, ...]:
    """COCO RLE (counts as str) of each object's pixels; None for an object without any."""
    with opened_image(path, "mask") as image:
        pixels = np.array(image)
    if pixels.shape != (height, width):
        problem = f"mask of shape {pixels.shape} is not a palette image of {height} x {width}"
        raise BadInput(path, problem, "replace the file")
    values = np.unique(pixels)
    strange = values[~np.isin(values, [*range(objects + 1), 255])]
    if len(strange):
        problem = f"has pixels of value {strange[0]}, but {objects} <object> in its annotation"
        raise BadInput(path, problem, "give the k-th <object> value k (0: background, 255: void)")
    return tuple(
        encode_mask(pixels == k) if (pixels == k).any() else None for k in range(1, objects + 1)
    )
