"""Files with a checksum of themselves, so that one changed byte is noticed by whoever reads them.

The checksum, BLAKE2b of 16 bytes as hexadecimal digits, is the entry `checksum` of a safetensors
file's metadata or of a JSON object. It is that of the whole file with zeros in its place.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weaksam_jax.errors import BadFile
from weaksam_jax.files import (
    array_bytes,
    check_replaced,
    check_whole,
    parse_arrays,
    read_text,
    write_text,
)
from weaksam_jax.text import parse_json

NAME = "checksum"
_DIGITS = 32
_ZEROS = "0" * _DIGITS
_KEY = f'"{NAME}":"'.encode()
_TAIL, _HEAD = 80, 1 << 16  # bytes that are looked at
_HINT = "make it again with the command that made it"


def seal_arrays(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with a checksum; the same arrays and metadata give the same bytes."""
    data = array_bytes(arrays, {**metadata, NAME: _ZEROS})
    start = data.index(_KEY) + len(_KEY)  # the header comes first, its metadata before all else
    return data[:start] + _digest(data).encode() + data[start + _DIGITS :]


def open_arrays(data: bytes, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays, metadata) of a file of `seal_arrays`; `BadFile` with `name` when it is damaged.

    The arrays are views of `data`, which nobody can write to.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    start = data.find(_KEY, 8, end) + len(_KEY)
    if start < len(_KEY):
        parse_arrays(data, name)  # says what is wrong with it, if it is cut short
        raise BadFile(name, "has no checksum (an older version made it)", _HINT)
    digest = _digest(data[:start], _ZEROS.encode(), memoryview(data)[start + _DIGITS :])
    if digest.encode() != data[start : start + _DIGITS]:
        parse_arrays(data, name)
        raise BadFile(name, "is damaged (its checksum is another)", _HINT)
    return parse_arrays(data, name)


def is_sealed_json(path: Path) -> bool:
    """Whether a file ends as those of `write_sealed_json` do, damaged elsewhere or not."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return re.search(rb'"checksum": "[0-9a-f]{32}"\}\s*$', file.read(_TAIL)) is not None


def is_sealed_arrays(path: Path) -> bool:
    """Whether a file was made by `seal_arrays`; one that a power cut left empty, filled with zeros
    or cut short was."""
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    start = b'{"__metadata__"'[: max(0, len(head) - 8)]
    cut = len(head) < 8 + int.from_bytes(head[:8], "little") and head[8:].startswith(start)
    return _KEY in head or not head.strip(b"\0") or (len(head) < _HEAD and cut)


def write_sealed_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object with its checksum, atomically; `BadInput` in place of a file that is no
    such (`weaksam_jax.files.check_replaced`)."""
    check_replaced(path, is_sealed_json)
    text = _sealed_text(value)
    check_whole(path, text, value)
    write_text(path, text)


def read_sealed_json(path: str | Path) -> dict[str, Any]:
    """The object in a file of `write_sealed_json`, without the checksum; `BadFile` when it is
    missing or damaged."""
    text = read_text(path)
    value = parse_json(text, path)
    if not isinstance(value, dict) or not isinstance(value.pop(NAME, None), str):
        raise BadFile(path, "has no checksum", _HINT)
    if _sealed_text(value) != text:
        raise BadFile(path, "is damaged (its checksum is another)", _HINT)
    return value


def file_digest(path: str | Path) -> str:
    """BLAKE2b of a file's bytes, 32 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, _blake).hexdigest()


def _sealed_text(value: Mapping[str, Any]) -> str:
    plain = {**value, NAME: _ZEROS}
    digest = _digest(json.dumps(plain, allow_nan=False).encode())
    return json.dumps({**plain, NAME: digest}, allow_nan=False) + "\n"


def _digest(*parts: bytes | memoryview) -> str:
    whole = _blake()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


def _blake() -> Any:
    return hashlib.blake2b(digest_size=_DIGITS // 2)
