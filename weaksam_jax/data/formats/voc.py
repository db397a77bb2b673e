"""Reader of VOCdevkit folders (VOC2007, VOC2012 and folders laid out like them).

Layout: `JPEGImages/*.jpg`, `Annotations/*.xml`, `ImageSets/Main/<split>.txt`, and optionally
`SegmentationObject/*.png` (pixel k = k-th object of the XML, 255 void) and `classes.txt`.

`voc_tags` looks at object names and difficult flags only; `voc_truth` alone looks at boxes and
masks.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from tqdm import tqdm

from weaksam_jax.data.formats.checks import first_duplicate, read_classes
from weaksam_jax.data.images import image_size
from weaksam_jax.data.masks import encode_mask
from weaksam_jax.data.records import TagRecord, TagSplit, TruthRecord, TruthSplit
from weaksam_jax.errors import BadInput

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
    splits = {path.stem for path in (root / "ImageSets" / "Main").glob("*.txt")}
    if {"trainval", "test"} <= splits:
        names = _read_list(root, "test")
        if names and (root / "Annotations" / f"{names[0]}.xml").exists():
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
    names = _read_list(root, split)
    unpublished = _unpublished(root, split, names)
    ids, classes = _image_ids(root, names, split), _classes(root)
    index = {name: i for i, name in enumerate(classes)}

    def tags_of(name: str) -> tuple[tuple[int, ...], bool]:
        annotation = root / "Annotations" / f"{name}.xml"
        objects = () if unpublished else tuple(_objects(annotation))
        found = {
            _class_index(index, annotation, label)
            for label, hard, _ in objects
            if difficult or not hard
        }
        return tuple(sorted(found)), bool(objects) and not found

    records = []
    for name in tqdm(names, desc=f"read {split}", unit="images", delay=3):
        path = _image_path(root, name)
        records.append(TagRecord(ids[name], path.name, path, *image_size(path), *tags_of(name)))
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
    names = _read_list(root, split)
    if _unpublished(root, split, names) or _without_boxes(root, names):
        return None
    ids, classes = _image_ids(root, names, split), _classes(root)
    index = {name: i for i, name in enumerate(classes)}
    bar = tqdm(names, desc=f"read {split}", unit="images", delay=3)
    records = tuple(_truth_record(root, name, ids[name], index=index) for name in bar)
    category_ids = tuple(range(1, len(classes) + 1))
    return TruthSplit(root.name, split, classes, category_ids=category_ids, records=records)


def voc_image_id(name: str) -> int | None:
    """`000005` -> 5, `2008_000008` -> 2008000008 (the contract's rule); None for other names."""
    digits = name.replace("_", "")
    return int(digits) if re.fullmatch("[0-9]{1,18}", digits) else None


def _is_voc(path: Path) -> bool:
    return (path / "JPEGImages").is_dir() and (path / "ImageSets" / "Main").is_dir()


def _read_list(root: Path, split: str) -> list[str]:
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt") if "_" not in p.stem))
        raise BadInput(path, "image list cannot be read", f"splits here: {known}") from error
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise BadInput(path, f"split {split} is empty", "list at least one image name in it")
    twice = first_duplicate(names)
    if twice is not None:
        raise BadInput(path, f"image {twice} is listed twice", "list every image once")
    return names


def _image_ids(root: Path, names: list[str], split: str) -> dict[str, int]:
    """Ids of a split's images: the contract's rule; where a listed name is no number, the position
    (from 1) in the sorted names of all lists, so that splits never share an id."""
    ids = {name: voc_image_id(name) for name in names}
    everything = _all_names(root)
    if any(voc_image_id(name) is None for name in everything):
        ids = {name: i for i, name in enumerate(sorted({*everything, *names}), 1)}
    twice = first_duplicate([ids[name] for name in names])
    if twice is not None:
        both = " and ".join(name for name in names if ids[name] == twice)
        path = root / "ImageSets" / "Main" / f"{split}.txt"
        raise BadInput(path, f"{both} have the same image id {twice}", "rename one of them")
    return ids


def _all_names(root: Path) -> list[str]:
    """The names in every image list of the folder, sorted (per-class lists repeat them)."""
    names: set[str] = set()
    for path in (root / "ImageSets" / "Main").glob("*.txt"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        names.update(line.split()[0] for line in lines if line.strip())
    return sorted(names)


def _classes(root: Path) -> tuple[str, ...]:
    """`classes.txt` if present, else VOC's twenty if all names are among them, else sorted names.

    Names are those of the per-class lists (`ImageSets/Main/<class>_<split>.txt`) where there are
    any, else of the objects in all lists, so that every split has the same classes.
    """
    listed = read_classes(root / "classes.txt")
    if listed is not None:
        return listed
    names = _classes_with_lists(root)
    if not names:
        annotations = (root / "Annotations" / f"{name}.xml" for name in _all_names(root))
        names = {label for path in annotations if path.exists() for label, *_ in _objects(path)}
    if not names:
        hint = f"add annotations, or {root / 'classes.txt'} with one class per line"
        raise BadInput(root / "Annotations", "names no object at all", hint)
    return VOC_CLASSES if names <= set(VOC_CLASSES) else tuple(sorted(names))


def _classes_with_lists(root: Path) -> set[str]:
    """Classes that have per-class lists: `<class>_<split>.txt` of rows `name flag`."""
    paths = {path.stem: path for path in (root / "ImageSets" / "Main").glob("*.txt")}
    names = set()
    for stem, path in paths.items():
        label, _, split = stem.rpartition("_")
        if label and split in paths:
            with open(path, encoding="utf-8", errors="replace") as file:
                if len(file.readline().split()) == 2:
                    names.add(label)
    return names


def _class_index(index: dict[str, int], annotation: Path, name: str) -> int:
    if name not in index:
        hint = f"add it to classes.txt or correct it (classes: {', '.join(index)})"
        raise BadInput(annotation, f"class {name!r} is not in the class list", hint)
    return index[name]


def _objects(annotation: Path) -> Iterator[tuple[str, bool, ElementTree.Element]]:
    """(class name, difficult, element) of every object, in the order of the file."""
    try:
        root = ElementTree.parse(annotation).getroot()
    except FileNotFoundError as error:
        hint = "restore it, or take the image out of the list (an image without objects has an "
        raise BadInput(
            annotation, "annotation does not exist", hint + "annotation without <object>)"
        ) from error
    except (ElementTree.ParseError, OSError) as error:
        raise BadInput(annotation, f"is no XML ({error})", "replace the file") from error
    for element in root.iter("object"):
        name = (element.findtext("name") or "").strip()
        if not name:
            raise BadInput(annotation, "has an <object> without <name>", "name its class")
        yield name, (element.findtext("difficult") or "0").strip() == "1", element


def _unpublished(root: Path, split: str, names: list[str]) -> bool:
    """Whether it is no training split and not one of its images has an annotation."""
    paths = (root / "Annotations" / f"{name}.xml" for name in names)
    return not split.startswith("train") and not any(path.exists() for path in paths)


def _without_boxes(root: Path, names: list[str]) -> bool:
    """Whether there are objects, but not one `<bndbox>` (the first one found ends the search)."""
    named = False
    for name in names:
        for _, _, element in _objects(root / "Annotations" / f"{name}.xml"):
            if element.find("bndbox") is not None:
                return False
            named = True
    return named


def _image_path(root: Path, name: str) -> Path:
    for suffix in (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG"):
        path = root / "JPEGImages" / f"{name}{suffix}"
        if path.exists():
            return path
    return root / "JPEGImages" / f"{name}.jpg"  # named by the error of whoever opens it


def _truth_record(root: Path, name: str, image_id: int, index: dict[str, int]) -> TruthRecord:
    annotation, path = root / "Annotations" / f"{name}.xml", _image_path(root, name)
    width, height = image_size(path)
    labels, difficult, boxes = [], [], []
    for label, hard, element in _objects(annotation):
        labels.append(_class_index(index, annotation, label))
        difficult.append(hard)
        boxes.append(_box(element, annotation, width, height=height))
    masks_path = root / "SegmentationObject" / f"{name}.png"
    masks = _masks(masks_path, len(boxes), width, height=height) if masks_path.exists() else None
    return TruthRecord(
        image_id,
        path.name,
        path,
        width=width,
        height=height,
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        labels=np.asarray(labels, np.int32),
        difficult=np.asarray(difficult, bool),
        crowd=np.zeros(len(boxes), bool),
        masks=masks,
    )


def _box(element: ElementTree.Element, annotation: Path, width: int, height: int) -> list[float]:
    """`[xmin-1, ymin-1, xmax, ymax]` of VOC's 1-based inclusive corners, checked."""
    texts = [element.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
    shown = f"box {' '.join(text or '?' for text in texts)} of {element.findtext('name')}"
    hint = f"correct it (1-based, inclusive; the image is {width} x {height})"
    try:
        xmin, ymin, xmax, ymax = (float(text) for text in texts)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise BadInput(annotation, f"{shown} is incomplete", hint) from error
    if not (xmax >= xmin and ymax >= ymin):
        raise BadInput(annotation, f"{shown} is inverted", hint)
    if not (xmin >= 1 and ymin >= 1 and xmax <= width and ymax <= height):
        raise BadInput(annotation, f"{shown} lies outside the image", hint)
    return [xmin - 1, ymin - 1, xmax, ymax]


def _masks(path: Path, objects: int, width: int, height: int) -> tuple[dict | None, ...]:
    """COCO RLE (counts as str) of each object's pixels; None for an object without any."""
    try:
        with Image.open(path) as image:
            pixels = np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise BadInput(path, f"mask cannot be read ({error})", "replace the file") from error
    if pixels.shape != (height, width):
        problem = f"mask of shape {pixels.shape} is not a palette image of {height} x {width}"
        raise BadInput(path, problem, "replace the file")
    return tuple(
        encode_mask(pixels == k) if (pixels == k).any() else None for k in range(1, objects + 1)
    )
