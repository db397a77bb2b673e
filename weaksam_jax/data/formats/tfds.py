"""Adapter for TensorFlow Datasets: `tfds:voc/2007` is exported once to a VOCdevkit and read there.

The extra `tfds` (and, to build the data set the first time, tensorflow) is needed for the export
only; afterwards the folder is an ordinary VOCdevkit.
"""

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image
from tqdm import tqdm

from weaksam_jax.data.formats.voc import VOC_CLASSES
from weaksam_jax.errors import BadInput

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
        lists = {}
        for theirs, ours in _SPLITS.items():
            lists[ours] = _export_split(source[theirs], work, f"export {ours}")
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


def _export_split(examples: Sequence[Mapping[str, Any]], root: Path, what: str) -> list[str]:
    names, annotated = [], False
    bar = tqdm(range(len(examples)), desc=what, unit="images")
    for index in bar:
        example = examples[index]
        name = Path(_text(example["image/filename"])).stem
        data = bytes(example["image"])
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(data)
        with Image.open(BytesIO(data)) as image:
            size = image.size
        text = _xml(name, size, example["objects"])
        annotated |= "<object>" in text
        (root / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")
        names.append(name)
    if not annotated:
        for name in names:
            (root / "Annotations" / f"{name}.xml").unlink()
    return names


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _xml(name: str, size: tuple[int, int], objects: Mapping[str, Any]) -> str:
    """The annotation. TFDS divides VOC's 1-based corners by the size; this multiplies them back."""
    width, height = size
    lines = [f"<annotation><filename>{escape(name)}.jpg</filename>"]
    lines.append(f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>")
    columns = (objects[key] for key in ("label", "bbox", "is_difficult", "is_truncated"))
    for label, bbox, difficult, truncated in zip(*columns, strict=True):
        ymin, xmin, ymax, xmax = (float(share) for share in bbox)
        corners = {"xmin": xmin * width, "ymin": ymin * height}
        corners |= {"xmax": xmax * width, "ymax": ymax * height}
        lines.append(
            f"<object><name>{VOC_CLASSES[int(label)]}</name>"
            f"<truncated>{int(truncated)}</truncated><difficult>{int(difficult)}</difficult>"
            "<bndbox>"
            + "".join(f"<{key}>{round(value, 2):g}</{key}>" for key, value in corners.items())
            + "</bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>", ""])
