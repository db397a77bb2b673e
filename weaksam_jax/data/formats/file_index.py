"""Files of a folder by the names that people write for them."""

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from weaksam_jax.errors import BadInput

# Suffixes of images, in small letters.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *(".avif", ".jp2", ".ppm", ".pgm", ".tga"),
)


@dataclass(frozen=True)
class FileIndex:
    """The files below a folder; each folder is listed once, when it is first asked for.

    A name is found in any Unicode form (disks of Macs keep "ü" as two characters), and its suffix
    in any case.
    """

    root: Path
    _listed: dict[Path, dict[str, list[str]]] = field(default_factory=dict)

    def file(self, name: str) -> Path | None:
        """The file of a name with its suffix, or None."""
        if os.path.isfile(self.root / name):
            return self.root / name
        folder, last = self._folder(name)
        found = self._names(folder).get(_form(last), [])
        if not found:
            found = self._stems(folder, Path(last).stem, (Path(last).suffix.lower(),))
        return folder / found[0] if len(found) == 1 else None

    def by_stem(self, name: str, suffixes: tuple[str, ...]) -> Path | None:
        """The file of a name that lacks its suffix, or None.

        Raises `BadInput` when there are several, of which the caller cannot know the right one.
        """
        folder, last = self._folder(name)
        found = self._stems(folder, last, suffixes)
        if len(found) > 1:
            problem = f"holds {' and '.join(sorted(found))}: which one {name} means cannot be told"
            raise BadInput(folder, problem, "write the name with its suffix, or rename one")
        return folder / found[0] if found else None

    def holds(self, name: str, suffixes: tuple[str, ...]) -> bool:
        """Whether there is a file of a name, with or without its suffix."""
        return self.file(name) is not None or bool(self._stems(*self._folder(name), suffixes))

    def _stems(self, folder: Path, last: str, suffixes: tuple[str, ...]) -> list[str]:
        """The names in a folder that a name without suffix may mean: those spelt alike first."""
        found = self._names(folder).get(_form(last) + "/", [])
        found = [one for one in found if Path(one).suffix.lower() in suffixes]
        return [one for one in found if Path(one).stem == last] or found

    def _folder(self, name: str) -> tuple[Path, str]:
        """The folder of a name, as on disk, and its last part."""
        *parents, last = name.split("/")
        folder = self.root
        for part in parents:
            found = [] if os.path.isdir(folder / part) else self._names(folder).get(_form(part), [])
            folder /= found[0] if len(found) == 1 else part
        return folder, last

    def _names(self, folder: Path) -> dict[str, list[str]]:
        """What a folder holds, by name and, with "/" behind it, by name without suffix."""
        if folder not in self._listed:
            names: dict[str, list[str]] = {}
            for one in sorted(_entries(folder)):
                names.setdefault(_form(one), []).append(one)
                names.setdefault(_form(Path(one).stem) + "/", []).append(one)
            self._listed[folder] = names
        return self._listed[folder]


def first_twins(paths: Iterable[Path]) -> tuple[int, int] | None:
    """The first two places of a list that are one file (`a.jpg` and `A.JPG` on a disk that does not
    tell them apart), or None. A link is a file of its own."""
    first: dict[str, list[tuple[int, Path]]] = {}
    for index, path in enumerate(paths):
        alike = first.setdefault(_form(str(path)).casefold(), [])
        for place, other in alike:
            if other == path or _is_one_file(other, path):
                return place, index
        alike.append((index, path))
    return None


def _is_one_file(a: Path, b: Path) -> bool:
    try:
        return not (a.is_symlink() or b.is_symlink()) and os.path.samefile(a, b)
    except OSError:  # one of them is missing
        return False


def _form(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _entries(folder: Path) -> list[str]:
    """Names in a folder, without what Macs put beside files (`._name`)."""
    if not os.path.isdir(folder):
        return []
    try:
        return [name for name in os.listdir(folder) if not name.startswith("._")]
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise BadInput(folder, problem, "check the folder's permissions") from error
