"""A long JSON list in a file, a part at a time."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from weaksam_jax.errors import BadFile
from weaksam_jax.files import check_regular
from weaksam_jax.text import parse_json

PART = 2**22  # characters that are read at once
MOST = 2**28  # and looked through for the end of an item
_BLANK = " \t\r\n"
_GAP = re.compile(r"\}\s*,\s*\{")  # between two objects
_WINDOW = 2**16


class NotPlain(Exception):
    """A file that is to be read as a whole: it is no list of objects, has another encoding than
    UTF-8, or is no JSON, which `weaksam_jax.files.read_json` says by place."""


def list_parts(path: str | Path, size: int = PART) -> Iterator[list]:
    """The items of the list of objects in a JSON file, in their order, those in some `size`
    characters at a time.

    Parts end where a "}, {" stands; one that does not belong between items (it is in a text, say)
    leaves a part that is no JSON. Raises `NotPlain` then, and `BadFile` for a path that is no file.
    """
    check_regular(path)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for text in _texts(file, size):
                yield parse_json(text, path)
    except (OSError, UnicodeDecodeError, BadFile) as error:
        raise NotPlain from error


def _texts(file: TextIO, size: int) -> Iterator[str]:
    """JSON lists whose items are, all together, those of the file's."""
    text = file.read(size)
    if not text.lstrip(_BLANK).startswith("["):
        raise NotPlain
    while more := file.read(size):
        text += more
        if (gap := _last_gap(text)) is not None:
            yield text[: gap[0] + 1] + "]"
            text = "[" + text[gap[1] - 1 :]
        elif len(text) > MOST:
            raise NotPlain
    yield text


def _last_gap(text: str) -> tuple[int, int] | None:
    """Where the last gap between two objects begins and ends."""
    for start in (max(len(text) - _WINDOW, 0), 0):
        gaps = [one.span() for one in _GAP.finditer(text, start)]
        if gaps:
            return gaps[-1]
    return None
