"""Photos on a disk: files, folders and globs as a list, each with the name of its output."""

import glob
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weaksam_jax.data.images import image_size
from weaksam_jax.data.records import TagRecord
from weaksam_jax.errors import BadInput

# Suffixes of the files that are taken of a folder; a file that is named itself may have any.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class Photo:
    """A photo, its record (id from 1 in the order given; no tags) and the picture's name below the
    output folder."""

    record: TagRecord
    picture: Path


def find_photos(given: Sequence[str | Path], out: Path) -> list[Photo]:
    """Every photo that `given` names: files, folders (with all that is in them) and globs.

    A picture is named after its photo (beach.jpg: beach.png). Where two photos would have one name
    all are named by their folders too (a/beach.png, b/beach.png), and photos that differ in the
    suffix alone keep it (beach.jpg.png). What lies in `out` is no photo of a folder. Only headers
    are read. Raises `BadInput` for what does not exist, is no image, or would be overwritten.
    """
    paths = list(dict.fromkeys(path for one in given for path in _expand(str(one), out.resolve())))
    if not paths:
        raise BadInput("the command line", "names no photo", "give files, folders or globs")
    names = _names(paths)
    pictures = _pictures(names)
    inside = {path.resolve() for path in paths}
    for path, picture in zip(paths, pictures, strict=True):
        if (out / picture).resolve() in inside:
            raise BadInput(path, f"{out / picture} is a photo itself", "give another --out")
    rows = enumerate(zip(names, paths, pictures, strict=True), 1)
    return [
        Photo(TagRecord(number, name.as_posix(), path, *image_size(path), ()), picture)
        for number, (name, path, picture) in rows
    ]


def _expand(text: str, out: Path) -> list[Path]:
    """The photos of one word of the command line, sorted."""
    path = Path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = [one for one in sorted(path.rglob("*")) if one.suffix.lower() in SUFFIXES]
        found = [one for one in inside if one.is_file() and out not in one.resolve().parents]
        problem = f"holds no photo ({', '.join(SUFFIXES)})"
    else:
        matches = sorted(map(Path, glob.glob(text, recursive=True)))
        found = [one for one in matches if one.is_file()]
        problem = "does not exist" if glob.escape(text) == text else "matches no file"
    if not found:
        raise BadInput(path, problem, "give photos, folders of photos or globs")
    return found


def _names(paths: Sequence[Path]) -> list[Path]:
    """File names, or where two are the same paths as seen from the folder above them all."""
    plain = [Path(path.name) for path in paths]
    if len({_key(one) for one in plain}) == len(plain):
        return plain
    whole = [path.resolve() for path in paths]
    shared = [set(path.parents) for path in whole]
    top = max(set.intersection(*shared), key=lambda folder: len(folder.parts))
    return [path.relative_to(top) for path in whole]


def _pictures(names: Sequence[Path]) -> list[Path]:
    """The pictures' names: .png for the suffix, or behind it where names differ in that alone."""
    often = defaultdict(int)
    for name in names:
        often[_key(name.with_suffix(""))] += 1
    return [
        name.with_suffix(".png")
        if often[_key(name.with_suffix(""))] == 1
        else name.with_name(f"{name.name}.png")
        for name in names
    ]


def _key(name: Path) -> str:
    """Equal for names that are one file on a disk that does not tell capital letters."""
    return name.as_posix().lower()
