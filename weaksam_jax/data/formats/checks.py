"""What several readers check: names of classes and files, lists, doubles."""

import re
import unicodedata
from collections.abc import Hashable, Iterable
from pathlib import Path, PurePosixPath

from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_text

# Blanks at either end; with them what editors leave where files were joined, which is not seen.
_BLANKS = re.compile("^[\\s\ufeff\u200b]+|[\\s\ufeff\u200b]+$")

# What shows nothing, wherever it stands: soft hyphens, joiners of words, marks of direction.
_UNSEEN = re.compile("[\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u2060-\u2064\u206a-\u206f\ufeff]")
# What shows nothing beside Latin letters, but shapes Persian, Hindi and emoji.
_SHAPING = re.compile(
    "(?:^|(?<=[\u0000-\u036f]))[\u200c\u200d\ufe00-\ufe0f\U000e0020-\U000e007f]+"
    "|[\u200c\u200d]+(?=[\u0000-\u036f]|$)"
)
_SPACES = re.compile("[\u00a0\u2000-\u200a\u202f\u205f]")  # that look like the ordinary one


def clean(text: str) -> str:
    """A field without the blanks around it."""
    return _BLANKS.sub("", text)


def clean_name(text: str, path: str | Path, what: str) -> str:
    """The name of a class as all readers take it: without blanks around it and what cannot be seen
    in it, every space the ordinary one, in Unicode's form NFC.

    Two names that look alike are so one name. Everything that can be seen may stand in it, "/" too
    (`weaksam_jax.text.file_name_of` makes files of it). what: what has the name, for the error.
    Raises `BadInput` with `path` for an empty name, and for one with a control character, a line
    end or half of a surrogate pair.
    """
    name = clean(text)
    if name and name.isascii() and name.isprintable():
        return name
    name, before = _as_seen(name), name
    while name != before:  # what was taken out may have stood between two that belong together
        name, before = _as_seen(name), name
    if not name:
        raise BadInput(path, f"{what} has no name", "name it")
    bad = [one for one in name if unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp")]
    if bad:
        problem = f"{what} has the name {name!a}, which holds the character U+{ord(bad[0]):04X}"
        raise BadInput(path, problem, "name it with characters that can be seen")
    return name


def _as_seen(name: str) -> str:
    name = _UNSEEN.sub("", unicodedata.normalize("NFC", name))
    return unicodedata.normalize("NFC", clean(_SPACES.sub(" ", _SHAPING.sub("", name))))


def check_inside(name: str, path: str | Path, what: str) -> str:
    """A file's name below a data set's folder, with "/" and without "./"; links are the user's.

    what: who names it, for the error. Raises `BadInput` with `path` for a name that leads out of
    the folder, or holds a NUL or nothing.
    """
    pure = PurePosixPath(name)
    windows = re.match(r"[A-Za-z]:[\\/]|\\\\", name)
    parts = re.split(r"[\\/]", name)
    if "\0" in name or not pure.parts or pure.is_absolute() or windows or ".." in parts:
        problem = f"{what} names {name!a}, which does not lie in the data set"
        raise BadInput(path, problem, "name files by their path below the folder of the images")
    return pure.as_posix()


def read_lines(path: Path, most: int = -1) -> list[str]:
    """The lines of a list that are not blank, without the blanks around them (`read_text`).

    most: of the first lines only.
    """
    lines = read_text(path).split("\n", most)
    return [line for line in map(clean, lines[:most] if most >= 0 else lines) if line]


def read_classes(path: Path) -> tuple[str, ...] | None:
    """Class names of a `classes.txt` (one per line, in the order of ids); None without it.

    Raises `BadInput` when it names no class, or one twice, or is no text.
    """
    if not path.exists():
        return None
    names = tuple(clean_name(line, path, "a class") for line in read_lines(path))
    twice = first_duplicate(names)
    if twice is not None or not names:
        problem = "names no class" if twice is None else f"names class {twice} twice"
        raise BadInput(path, problem, "write one class name per line")
    return names


def first_duplicate(values: Iterable[Hashable]) -> Hashable | None:
    """The first value that occurs a second time, or None."""
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
