"""Adapter for TensorFlow Datasets: `tfds:voc/2007` is exported once to a VOCdevkit and read there.

The extra `tfds` (and, to build the data set the first time, tensorflow) is needed for the export
only; afterwards the folder is an ordinary VOCdevkit.
"""

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.sax.saxutils import escape

from weaksam_jax.data.formats.checks import check_inside, clean, clean_name
from weaksam_jax.data.formats.file_index import IMAGE_SUFFIXES
from weaksam_jax.data.formats.voc import VOC_CLASSES
from weaksam_jax.data.images import image_size
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_text
from weaksam_jax.progress import progress_bar

PREFIX = "tfds:"
_YEARS = ("2007", "2012")
# Names of the splits there and here; TFDS has no trainval, which is both together.
_SPLITS = {"train": "train", "validation": "val", "test": "test"}


def find_tfds(path: str | Path) -> Path | None:
    """The VOC folder of a path that starts with `tfds:`, see `tfds_folder`; else None."""
    return tfds_folder(str(path)) if str(path).startswith(PREFIX) else None


def tfds_folder(name: str, cache: str | Path | None = None) -> Path:
    """The VOC folder of `tfds:voc/2007` or `tfds:voc/2012`, exported on the first call.

    cache: where exports live (default `$WEAKSAM_DATA/tfds`, else `~/.cache/weaksam-jax/tfds`).
    Raises `BadInput` for another data set, or when the extra is missing or the data set cannot be
    built.
    """
    builder, _, year = name.removeprefix(PREFIX).partition("/")
    if builder != "voc" or year not in _YEARS:
        known = " or ".join(f"{PREFIX}voc/{known}" for known in _YEARS)
        raise BadInput(name, "is no data set of this adapter", f"give {known}")
    root = (Path(cache) if cache else _default_cache()) / f"voc-{year}" / f"VOC{year}"
    if not root.exists():
        export_voc(_data_source(f"voc/{year}"), root)
    return root


def export_voc(source: Mapping[str, Sequence[Mapping[str, Any]]], root: Path) -> None:
    """Writes splits of TFDS's `voc` (images as the undecoded JPEG bytes) as a VOC folder.

    source: split name -> examples with `image` (bytes), `image/filename` and `objects` (columns
    `label`, `bbox` as ymin, xmin, ymax, xmax in shares of the image, `is_difficult`,
    `is_truncated`). A split without any object has no annotations (VOC2012 test): its images and
    list are written, no XML. Written under a temporary name and renamed.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    work = root.parent / f".{root.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (work / folder).mkdir(parents=True)
        lists: dict[str, list[str]] = {}
        for theirs, ours in _SPLITS.items():
            if theirs not in source:
                raise BadInput(f"{PREFIX}voc", f"has no split {theirs}", "build it again")
            taken = {name for names in lists.values() for name in names}
            lists[ours] = _export_split(source[theirs], work, f"export {ours}", taken=taken)
        lists["trainval"] = sorted(lists["train"] + lists["val"])
        for split, names in lists.items():
            text = "".join(f"{name}\n" for name in sorted(names))
            (work / "ImageSets" / "Main" / f"{split}.txt").write_text(text, encoding="utf-8")
        os.replace(work, root)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _default_cache() -> Path:
    data = os.environ.get("WEAKSAM_DATA")
    return Path(data) / "tfds" if data else Path.home() / ".cache" / "weaksam-jax" / "tfds"


def _data_source(name: str) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The splits of a TFDS data set as random-access sequences, images undecoded."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        problem = f"tensorflow_datasets is not installed ({error})"
        hint = "pip install 'weaksam-jax[tfds]', or give a VOCdevkit folder"
        raise BadInput(PREFIX + name, problem, hint) from error
    try:
        decoders = {"image": tfds.decode.SkipDecoding()}
        return tfds.data_source(name, decoders=decoders)
    except Exception as error:  # network, checksum, or tensorflow missing while building
        hint = "building it needs tensorflow and the network; or give a VOCdevkit folder"
        raise BadInput(PREFIX + name, f"cannot be opened ({error})", hint) from error


def _export_split(
    examples: Sequence[Mapping[str, Any]], root: Path, what: str, taken: set[str]
) -> list[str]:
    """Writes a split's images and annotations; returns its names. taken: those of other splits."""
    annotations: dict[str, str] = {}
    for index in progress_bar(range(len(examples)), what):
        place = f"{what}, example {index + 1}"
        name, suffix = _name(examples[index], place)
        path = root / "JPEGImages" / f"{name}{suffix}"
        if name in taken or name in annotations:
            raise BadInput(place, f"{name} is there twice", "give every image a name of its own")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(examples[index]["image"]))
        annotations[name] = _annotation(examples[index], path, place)
    if any("<object>" in text for text in annotations.values()):
        for name, text in annotations.items():
            write_text(root / "Annotations" / f"{name}.xml", text)
    return list(annotations)


def _name(example: Mapping[str, Any], place: str) -> tuple[str, str]:
    """An example's name without suffix, and its image's suffix."""
    given = example["image/filename"]
    try:
        text = given.decode() if isinstance(given, bytes) else str(given)
    except UnicodeDecodeError as error:
        raise BadInput(place, f"its file name {given!r} is no UTF-8", "name it in UTF-8") from error
    text = clean_name(check_inside(clean(text), place, "it"), place, "its image")
    suffix = PurePosixPath(text).suffix
    known = suffix.lower() in IMAGE_SUFFIXES
    return (text.removesuffix(suffix), suffix) if known else (text, ".jpg")


def _annotation(example: Mapping[str, Any], path: Path, place: str) -> str:
    try:
        size = image_size(path)
    except BadInput as error:
        raise BadInput(
            place, f"{path.name}: {error.problem}", "build the data set again"
        ) from error
    objects = example["objects"]
    columns = (objects[key] for key in ("label", "bbox", "is_difficult", "is_truncated"))
    lines = [f"<annotation><filename>{escape(path.name)}</filename>"]
    lines.append("<size><width>{}</width><height>{}</height><depth>3</depth></size>".format(*size))
    for row in zip(*columns, strict=True):
        lines.append(_object(row, size, f"{place} ({path.name})"))
    return "\n".join([*lines, "</annotation>", ""])


def _object(row: tuple, size: tuple[int, int], place: str) -> str:
    """An object. TFDS divides VOC's 1-based corners by the size; this multiplies them back."""
    label, bbox, difficult, truncated = row
    ymin, xmin, ymax, xmax = shares = [float(share) for share in bbox]
    if not all(-1e-3 <= share <= 1 + 1e-3 for share in shares):  # NaN fails this too
        problem = f"box {' '.join(map(str, shares))} lies outside of the image"
        raise BadInput(place, problem, "boxes are shares of the image's sides, 0 to 1")
    if not 0 <= int(label) < len(VOC_CLASSES):
        raise BadInput(place, f"label {label} is no class", f"there are {len(VOC_CLASSES)}")
    corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), (xmin, ymin, xmax, ymax), strict=True))
    shown = "".join(
        f"<{key}>{round(min(max(share * side, 1), side), 2):.7g}</{key}>"
        for (key, share), side in zip(corners.items(), size * 2, strict=True)
    )
    return (
        f"<object><name>{VOC_CLASSES[int(label)]}</name><truncated>{int(truncated)}</truncated>"
        f"<difficult>{int(difficult)}</difficult><bndbox>{shown}</bndbox></object>"
    )
