"""What a command writes is never what it reads: checks of paths, before anything is written."""

import os
from collections.abc import Mapping
from pathlib import Path

from weaksam_jax.data.datasets import find_dataset
from weaksam_jax.data.formats.file_index import IMAGE_SUFFIXES
from weaksam_jax.errors import BadInput
from weaksam_jax.locks import LOCK

# Folders of a data set that its readers look into.
_READ = ("JPEGImages", "Annotations", "ImageSets", "images", "annotations")
_READ += ("SegmentationObject", "SegmentationClass", "labels")
_HINT = "give a folder outside of it"


def check_folder(flag: str, out: Path, data: str | Path) -> None:
    """`BadInput` when a command would write into its data set: `out` is the data set's folder,
    contains it, or is (or lies in) a folder of it that holds images or annotations.

    Symbolic links and relative paths are followed. flag: its name for the message. data: as in
    `weaksam_jax.data.datasets.open_tags`; what is exported from `tfds:` lies in no user's folder.
    """
    if str(data).startswith("tfds:"):
        return
    out, given, root = real(out), real(data), real(find_dataset(data)[0])
    if out in (given, root):
        raise BadInput(flag, f"{out} is the data set", _HINT)
    if out in root.parents:
        raise BadInput(flag, f"{out} contains the data set {root}", _HINT)
    if root in out.parents:
        inside = [one for one in (out, *out.parents) if root in one.parents]
        for folder in reversed(inside):
            if folder.name in _READ or _has_images(folder):
                raise BadInput(flag, f"{folder} belongs to the data set {root}", _HINT)


def check_files(flag: str, out: Path, inputs: Mapping[str, str | Path | None]) -> None:
    """`BadInput` when the file `out` is one of the files or lies in one of the folders that are
    read; inputs: by their flags, None where not given. A data set is `data`, see `check_folder`."""
    for name, path in inputs.items():
        if path is None or str(path).startswith("tfds:"):
            continue
        if _same(out, Path(path)):
            raise BadInput(flag, f"{out} is the file of {name}", "give another name")
        if name == "--data" and real(path) in real(out).parents:
            _check_in_data(flag, real(out), real(find_dataset(path)[0]))


def _check_in_data(flag: str, out: Path, root: Path) -> None:
    """A file that is there belongs to the data set, a new one only where its readers look."""
    folders = [one.name for one in out.parents if root in one.parents]
    if out.exists() or any(name in _READ for name in folders):
        raise BadInput(flag, f"{out} lies in the data set {root}", "give another name")


def check_apart(flag: str, out: Path, inputs: Mapping[str, str | Path | None]) -> None:
    """`BadInput` when an input lies in the folder `out`, whose content may be made anew."""
    for name, path in inputs.items():
        if path is None or not os.path.lexists(path):
            continue
        if real(out) in (real(path), *real(path).parents):
            hint = f"copy it elsewhere, or give another {flag}"
            raise BadInput(name, f"{path} lies in {flag}, which may make it anew", hint)


def real(path: str | Path) -> Path:
    """A path without relative parts and links; one of links in a circle stays as it is."""
    return Path(os.path.realpath(path))


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return real(one) == real(other)


def _has_images(folder: Path) -> bool:
    """Whether images lie in a folder that no command of ours made."""
    if not folder.is_dir() or (folder / LOCK).exists():
        return False
    return any(one.suffix.lower() in IMAGE_SUFFIXES for one in folder.iterdir())
