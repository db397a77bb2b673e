"""Text that people save: which encoding it is in, and JSON without its traps.

One rule for every list, table, class file and JSON file: UTF-8 with or without a byte-order mark,
or UTF-16 or UTF-32 with one; lines end in LF, CRLF or CR. A file in a national encoding that
nothing declares cannot be guessed, so it is refused by name and place.
"""

import codecs
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from weaksam_jax.errors import BadFile

# Longest first: the mark of UTF-32-LE starts with that of UTF-16-LE.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_HINT = "save it as UTF-8"
_JSON_HINT = "correct or replace the file"


def marked_encoding(data: bytes) -> tuple[bytes, str] | None:
    """(byte-order mark, Python's name of the encoding) that bytes start with, or None."""
    found = (one for one in BYTE_ORDER_MARKS.items() if data.startswith(one[0]))
    return next(found, None)


def decode_text(data: bytes, path: str | Path) -> str:
    """The text of a file's bytes, without byte-order mark, every line end as LF.

    Raises `BadFile` with `path`, line and byte when they are not of the encoding that the mark
    names (none: UTF-8), or hold a NUL.
    """
    mark, encoding = marked_encoding(data) or (b"", "utf-8")
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise _not_text(path, data, len(mark) + error.start, encoding=encoding) from error
    if "\0" in text:
        raise BadFile(path, f"{_place(text, text.index(chr(0)))} is a NUL, not text", _HINT)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str, path: str | Path) -> Any:
    """The value of a JSON text.

    Raises `BadFile` with `path` and place or entry for what is not JSON: NaN and Infinity, a key
    twice in one object, numbers of thousands of digits, nesting beyond the interpreter's stack,
    half of a surrogate pair. A number beyond double precision (1e999) comes as infinity.
    """
    odd: list[str] = []
    try:
        constant = lambda name: odd.append(name) or float(name)  # noqa: E731
        value = json.loads(text, parse_constant=constant, object_pairs_hook=unique)
        if odd:
            entry = next(_entries_not_finite(value), "a number")
            raise BadFile(path, f"{entry} is {odd[0]}, which JSON has not", "write a number")
        if has_half_pair(text, value):
            problem = "holds half of a surrogate pair (\\ud800 to \\udfff)"
            raise BadFile(path, problem, "write the whole character")
    except RecursionError as error:
        raise BadFile(path, "is nested too deeply", _JSON_HINT) from error
    except json.JSONDecodeError as error:
        problem = f"is not JSON ({error})" if text.strip() else "is empty, not JSON"
        raise BadFile(path, problem, _JSON_HINT) from error
    except TwiceError as error:
        problem = f"key {error.args[0]!r} stands twice in one object"
        raise BadFile(path, problem, "keep one of the two") from error
    except ValueError as error:  # Python reads no integer of more than 4300 digits
        long = re.search(r"[0-9]{1000,}", text)
        where = _place(text, long.start()) if long else "a number"
        raise BadFile(path, f"{where} is an integer of too many digits", "correct it") from error
    return value


def has_half_pair(text: str, value: Any) -> bool:
    """Whether a JSON text, of this value, holds half of a character: what Python makes of the bytes
    of a path that are not UTF-8, and no file should hold."""
    if not re.search(r"\\u[dD][89a-fA-F]", text):
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


class TwiceError(Exception):
    """A key (its one argument) that stands twice in one JSON object."""


def unique(pairs: list[tuple[str, Any]]) -> dict:
    """`object_pairs_hook` of `json.loads` that raises `TwiceError` with the first such key."""
    found = dict(pairs)
    if len(found) != len(pairs):
        often = Counter(name for name, _ in pairs)
        raise TwiceError(next(name for name, times in often.items() if times > 1))
    return found


def _entries_not_finite(value: Any, name: str = ""):
    """The places, as `annotations[3].bbox[2]`, of numbers that are NaN or infinite."""
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        yield name or "the value"
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from _entries_not_finite(inner, f"{name}.{key}" if name else key)
    for index, inner in enumerate(value) if isinstance(value, list) else ():
        yield from _entries_not_finite(inner, f"{name}[{index}]")


def _not_text(path: str | Path, data: bytes, position: int, encoding: str) -> BadFile:
    """The error for bytes at a position that are no characters of an encoding."""
    if encoding != "utf-8":
        problem = f"byte {position + 1} is not {encoding.upper()}, which its first bytes name"
        return BadFile(path, problem, _HINT)
    where = _place(data, position)
    hint = f"{_HINT} (in which other encoding it is written cannot be told from the file)"
    return BadFile(path, f"{where} (0x{data[position]:02x}) is not UTF-8", hint)


def _place(text: str | bytes, position: int) -> str:
    """`line 3, byte 7` (a text: character 7) of a position, both counted from 1."""
    before, unit = text[:position], "character"
    if isinstance(before, bytes):
        before, unit = before.decode("latin-1"), "byte"
    lines = before.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return f"line {len(lines)}, {unit} {len(lines[-1]) + 1}"


def file_name_of(text: str) -> str:
    """A name for a file, of any text: different texts have different names, ordinary ones their
    own.

    What a file's name cannot hold on every system (/ \\ : * ? " < > | %, control characters, a dot
    or blank at either end) is written as %2F, so that `urllib.parse.unquote` gives the text; more
    than 150 bytes are cut, and the text's hash put behind.
    """
    ends = {0, len(text) - 1}
    safe = "".join(
        "".join(f"%{byte:02X}" for byte in one.encode("utf-8", "surrogatepass"))
        if one in '/\\:*?"<>|%'
        or not (one.isprintable() or one == " ")
        or (i in ends and one in ". ")
        else one
        for i, one in enumerate(text)
    )
    if len(safe.encode()) > 150:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return f"{safe.encode()[:130].decode(errors='ignore')}%~{digest}"
    return safe or "%"
