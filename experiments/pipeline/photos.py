"""Photos on a disk: files, folders and globs as a list, each with the name of its output."""

import glob
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from weaksam_jax.data.formats.file_index import IMAGE_SUFFIXES
from weaksam_jax.data.images import image_size
from weaksam_jax.data.records import TagRecord
from weaksam_jax.errors import BadInput


@dataclass(frozen=True)
class Photo:
    """A photo, its record (id from 1 in the order given; no tags) and the picture's name below the
    output folder."""

    record: TagRecord
    picture: Path


def find_photos(given: Sequence[str | Path], out: Path) -> list[Photo]:
    """Every photo that `given` names: files, folders (with all that is in them) and globs.

    Of a folder are taken the files with a suffix of images; a file that is named itself may have
    any. A picture is named after its photo (beach.jpg: beach.png). Where two photos would have one
    name all are named by their folders too (a/beach.png, b/beach.png), and photos that differ in
    the suffix alone keep it (beach.jpg.png). What lies in `out` is no photo of a folder. Only
    headers are read. Raises `BadInput` for what does not exist, is no image, is not named in
    Unicode, or would be overwritten.
    """
    paths = list(dict.fromkeys(path for one in given for path in _expand(str(one), out.resolve())))
    if not paths:
        raise BadInput("the command line", "names no photo", "give files, folders or globs")
    names = _names(paths)
    for path, name in zip(paths, names, strict=True):
        _check_name(path, name)
    pictures = _pictures(names)
    inside = {path.resolve() for path in paths}
    for path, picture in zip(paths, pictures, strict=True):
        if (out / picture).resolve() in inside:
            raise BadInput(path, f"{out / picture} is a photo itself", "give another --out")
    rows = enumerate(zip(names, paths, pictures, strict=True), 1)
    return [
        Photo(_untagged(number, name.as_posix(), path), picture)
        for number, (name, path, picture) in rows
    ]


def _untagged(number: int, name: str, path: Path) -> TagRecord:
    width, height = image_size(path)
    return TagRecord(number, name, path, width=width, height=height, tags=())


def _check_name(path: Path, name: Path) -> None:
    """Raises `BadInput` for a name that no JSON can hold."""
    try:
        name.as_posix().encode()
    except UnicodeEncodeError as error:
        raise BadInput(path, "its name is no UTF-8", "rename it") from error


def passed_over(given: Sequence[str | Path], out: Path) -> Counter[str]:
    """How many files of the folders in `given` are not taken as photos, by suffix in small letters
    ("": none)."""
    folders = [Path(one) for one in given if Path(one).is_dir()]
    files = {path for one in folders for path in _files(one, out.resolve())}
    return Counter(path.suffix.lower() for path in files if not _is_photo(path))


def _expand(text: str, out: Path) -> list[Path]:
    """The photos of one word of the command line, sorted."""
    path = Path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [one for one in sorted(_files(path, out)) if _is_photo(one)]
        problem = f"holds no photo ({', '.join(IMAGE_SUFFIXES)})"
    else:
        matches = sorted(map(Path, glob.glob(text, recursive=True)))
        found = [one for one in matches if one.is_file()]
        problem = "does not exist" if glob.escape(text) == text else "matches no file"
    if not found:
        raise BadInput(path, problem, "give photos, folders of photos or globs")
    return found


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _files(folder: Path, out: Path) -> Iterator[Path]:
    """All that is no folder below one, but for `out` and what Macs put beside files (`._name`).

    Links to folders are followed, each folder once. A folder that cannot be read is an `OSError`.
    """
    seen = {out}
    for inside, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        if (real := Path(inside).resolve()) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(inside, name) for name in names if not name.startswith("._"))


def _raise(error: OSError) -> None:
    raise error


def _names(paths: Sequence[Path]) -> list[Path]:
    """File names, or where two are the same paths as seen from the folder above them all."""
    plain = [Path(path.name) for path in paths]
    if not _twice(plain):
        return plain
    whole = [path.resolve() for path in paths]
    shared = [set(path.parents) for path in whole]
    top = max(set.intersection(*shared), key=lambda folder: len(folder.parts))
    return [path.relative_to(top) for path in whole]


def _pictures(names: Sequence[Path]) -> list[Path]:
    """The pictures' names: .png for the suffix, or behind it where names differ in that alone (all
    of them, where such a name is that of another picture)."""
    long = [name.with_name(f"{name.name}.png") for name in names]
    short = [name.with_suffix(".png") for name in names]
    often = Counter(map(_key, short))
    mixed = [
        one if often[_key(one)] == 1 else other for one, other in zip(short, long, strict=True)
    ]
    return long if _twice(mixed) else mixed


def _twice(names: Iterable[Path]) -> bool:
    """Whether a disk may take two names for one."""
    return max(Counter(map(_key, names)).values()) > 1


def _key(name: Path) -> str:
    """Equal for names that are one file on a disk that does not tell capital letters, or Unicode's
    forms."""
    return unicodedata.normalize("NFC", name.as_posix()).casefold()
