"""What a command writes is never what it reads: checks of paths, before anything is written.

The flags of a command say themselves which of them are written:

    out: OutFolder
    json: OutFile | None = None

and the parsers of all commands (`weaksam_jax.flags.parse`, `bridge.runtime.command.run_command`)
call `check_outputs` with them. What is written under other names than the user gave is looked at
where it is written: `weaksam_jax.files.check_replaced`, `weaksam_jax.locks.locked`.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from weaksam_jax.data.datasets import find_dataset
from weaksam_jax.data.formats.file_index import IMAGE_SUFFIXES
from weaksam_jax.data.sealed import is_sealed_arrays, is_sealed_json
from weaksam_jax.errors import BadInput
from weaksam_jax.locks import LOCK, holder
from weaksam_jax.run_folder import RunFolder

# Folders of a data set that its readers look into.
_READ = ("JPEGImages", "Annotations", "ImageSets", "images", "annotations")
_READ += ("SegmentationObject", "SegmentationClass", "labels")
_HINT = "give a folder outside of it"


@dataclass(frozen=True)
class Written:
    """Mark of a flag whose path the command writes. kind "run": the folder of a main job, which
    looks after its data set itself (the embedded set lies in it)."""

    kind: Literal["file", "folder", "run"]


OutFile = Annotated[Path, Written("file")]
OutFolder = Annotated[Path, Written("folder")]
OutRun = Annotated[Path, Written("run")]


def check_outputs(given: Mapping[str, tuple[Any, Any]]) -> None:
    """`BadInput` when what a command would write is, holds or lies in what it reads, or is another
    command's; given: (type, value) of its flags by their names (`--out`), all of them.

    Every flag without a mark (`Written`) is taken for one that is read, where it names what exists.
    """
    marks = {flag: written(hint) for flag, (hint, _) in given.items()}
    inputs = {
        name: path
        for flag, (_, value) in given.items()
        if marks[flag] is None
        for name, path in _named(flag, value)
    }
    for flag, mark in marks.items():
        out = given[flag][1]
        if mark is None or not isinstance(out, Path):
            continue
        if mark.kind == "file":
            check_files(flag, out, inputs)
            check_free(flag, out)
            continue
        if mark.kind == "folder" and _dataset(inputs.get("--data")):
            check_folder(flag, out, inputs["--data"])
        if out.is_dir() and not (out / LOCK).is_file() and _dataset(real(out)) == real(out):
            raise BadInput(flag, f"{out} is a data set", _HINT)


def written(hint: Any) -> Written | None:
    """The mark in a flag's type."""
    found = [one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Written)]
    if not found and get_origin(hint) is not Literal:
        found = [mark for mark in map(written, get_args(hint)) if mark is not None]
    return found[0] if found else None


def _named(flag: str, value: Any) -> Iterator[tuple[str, Path | str]]:
    """What of a flag's value names something that exists: a path, or NAME=PATH."""
    for number, one in enumerate(value if isinstance(value, tuple) else (value,)):
        for text in (str(one), str(one).partition("=")[2]) if isinstance(one, str | Path) else ():
            if text and os.path.lexists(text):
                yield f"{flag}{f'.{number}' if number else ''}", text


def check_free(flag: str, out: Path) -> None:
    """`BadInput` when a named file is part of a proposal store or of a run."""
    if out.is_file() and (is_sealed_json(out) or _is_stored_image(out)):
        raise BadInput(flag, f"{out} belongs to a proposal store", "give another name")
    for folder in real(out).parents:
        if holder(folder).get("made_by") == "run":
            first, *deeper = real(out).relative_to(folder).parts
            if first in RunFolder(folder).own_files or (deeper and out.exists()):
                raise BadInput(flag, f"{out} belongs to the run {folder}", "give another name")


def _is_stored_image(path: Path) -> bool:
    """Whether a file is an image's in a store."""
    return path.suffix == ".safetensors" and path.stem.isdigit() and is_sealed_arrays(path)


def _dataset(path: str | Path | None) -> Path | None:
    """The folder of the data set that a path means; None: it is none, which the command says."""
    try:
        return None if path is None else real(find_dataset(path)[0])
    except (BadInput, OSError):
        return None


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
        if name == "--data" and real(path) in real(out).parents and (root := _dataset(path)):
            _check_in_data(flag, real(out), root)


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
