"""Files that are either whole or absent: atomic writing, JSON, safetensors, fingerprints."""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from weaksam_jax import interrupts
from weaksam_jax.errors import BadFile, BadInput
from weaksam_jax.text import (
    TwiceError,
    decode_text,
    has_half_pair,
    marked_encoding,
    parse_json,
    unique,
)

_NAMELESS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_path(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary name beside `path`; renames it on success, removes it on failure.

    The folder is made when it is missing. Readers never see a half-written file; two writers of
    the same file do not disturb each other (the last rename wins). durable: the file is on the disk
    when this ends, and stays whole or absent after a power cut. That costs milliseconds, so files
    of one image each go without: what marks them as finished calls `sync_disk` first.
    Raises `BadInput` when the folder cannot be made, or was removed meanwhile.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.parent / f".{_shortened(path.name)}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    interrupts.unfinished.add(temporary)
    try:
        yield temporary
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
        if durable:
            _sync(path.parent)
    except OSError as error:
        if error.errno in _NAMELESS:  # write() does not say which file it was
            error.filename = str(path)
        if not path.parent.is_dir():
            hint = "run the same command again"
            raise BadInput(path.parent, "was removed while it was used", hint) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
        interrupts.unfinished.discard(temporary)


def _shortened(name: str, most: int = 200) -> str:
    """The first bytes of a file's name, so that more may be put behind it (255 are a disk's
    limit)."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= most else encoded[:most].decode(errors="ignore")


def make_folder(path: Path) -> None:
    """Makes a folder and those above it where they are missing; `BadInput` when none can be made
    there, as in /proc."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        raise BadInput(path, "cannot be made here", "give another path") from error


def sync_disk(folder: str | Path) -> None:
    """Waits until everything that was written to the file system of `folder` is on its disk."""
    sync_one = getattr(ctypes.CDLL(None), "syncfs", None)  # Linux has it, Python does not
    if sync_one is None:
        os.sync()
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        sync_one(number)
    finally:
        os.close(number)


def _sync(path: Path) -> None:
    """A file's bytes, or a folder's names, are on the disk when this returns."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:  # some file systems do not sync folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)


def check_replaced(path: str | Path, is_ours: Callable[[Path], bool]) -> None:
    """`BadInput` when something stands at `path` that no command of ours made: nobody's file is
    overwritten. is_ours: says by its content whether a regular file is one that we wrote.

    For files that the user did not name (they lie in a named folder, or beside a named file).
    """
    path = Path(path)
    if os.path.lexists(path) and not (path.is_file() and is_ours(path)):
        hint = "move it elsewhere, or give another output"
        raise BadInput(path, "was there before and no such command made it", hint)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Writes JSON atomically. NaN and infinity are refused (they are not JSON), and so is what
    `read_json` would refuse (`check_whole`)."""
    text = json.dumps(value, indent=indent, allow_nan=False)
    check_whole(path, text, value)
    write_text(path, text + "\n")


def check_whole(path: str | Path, text: str, value: Any) -> None:
    """`BadInput` when a JSON text of `value`, for the file `path`, holds part of a character."""
    if has_half_pair(text, value):
        hint = "rename the folder or file that it comes from"
        raise BadInput(path, "would hold a name that is not UTF-8", hint)


def check_regular(path: str | Path) -> None:
    """Raises `BadFile` when a path is no file to read from: missing, a folder, a pipe, a device.

    To be called before a file of the user's is opened: opening a named pipe waits for ever.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise BadFile(path, "does not exist", "check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadFile(path, f"cannot be read ({reason})", "check the path") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise BadFile(path, f"is {kind}, not a file", "give a file")


def read_text(path: str | Path) -> str:
    """The text of a file, every line end as LF: UTF-8, or UTF-16 or UTF-32 with a byte-order mark.

    Raises `BadFile` when it cannot be read or is no such text (`weaksam_jax.text`).
    """
    check_regular(path)
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
            # A huge file that is no text is refused by its beginning.
            data = head if b"\0" in head and not marked_encoding(head) else head + file.read()
    except OSError as error:
        raise BadFile(path, f"cannot be read ({error.strerror})", "check the path") from error
    return decode_text(data, path)


def read_json(path: str | Path) -> Any:
    """Reads JSON (see `weaksam_jax.text.parse_json`); `BadFile` when missing or not JSON."""
    return parse_json(read_text(path), path)


class JsonLine(NamedTuple):
    """A line of a file of JSON lines: its number from 1, text without the end of the line, value,
    and the bytes of the file where it begins and where the next one does."""

    number: int
    text: str
    value: Any
    start: int
    end: int


def json_lines(path: str | Path, kind: str, hint: str) -> Iterator[JsonLine]:
    """The lines of a file of JSON lines, which its program appends to, one at a time.

    A last line that is no JSON is left out: a kill or a power cut came between. Raises `BadFile`
    with the number of another, which is no `kind`, and the hint; and for a path that is no file.
    """
    check_regular(path)
    end = 0
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            start, end = end, end + len(line)
            if not line.strip():
                continue
            try:
                text = line.removesuffix(b"\n").decode("utf-8")
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                if any(rest.strip() for rest in file):
                    raise BadFile(path, f"line {number} is no {kind}", hint) from error
                return
            yield JsonLine(number, text, value, start=start, end=end)


def _opened(path: str | Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise BadFile(path, f"cannot be read ({error.strerror})", "check the path") from error


def write_arrays(
    path: str | Path,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    durable: bool = True,
) -> None:
    """Writes named arrays and string metadata as one safetensors file, atomically.

    The same arrays and metadata always give the same bytes. durable: see `atomic_path`.
    """
    write_bytes(path, array_bytes(arrays, metadata), durable=durable)


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file; `BadFile` when it is missing or cannot be read."""
    check_regular(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadFile(path, f"cannot be read ({error.strerror})", "check the path") from error


def write_bytes(path: str | Path, data: bytes, durable: bool = True) -> None:
    """Writes a file atomically; durable: see `atomic_path`."""
    with atomic_path(path, durable) as temporary:
        temporary.write_bytes(data)


def array_bytes(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The bytes of a safetensors file, the same for the same arrays and metadata."""
    # (np.ascontiguousarray would turn a scalar into an array of one.)
    contiguous = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    return _sort_header(safetensors.numpy.save(contiguous, dict(metadata or {})))


def _sort_header(data: bytes) -> bytes:
    """A safetensors file with the keys of its header sorted.

    The library keeps metadata in a hash map, so that equal calls give files that differ.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the arrays start at a multiple of 8 bytes
    return len(header).to_bytes(8, "little") + header + data[end:]


def read_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads (arrays, metadata) of a safetensors file.

    Raises `BadFile` when it is missing, truncated or damaged, has a name twice, or a type of
    numbers that NumPy does not know.
    """
    with open_tensors(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, whose arrays are not read; raises as `read_arrays`."""
    with open_tensors(path, "numpy") as file:
        return file.metadata() or {}


@contextlib.contextmanager
def open_tensors(path: str | Path, framework: str) -> Iterator[Any]:
    """`safetensors.safe_open` of a file; what it raises inside becomes `BadFile` in one line.

    framework: "numpy" or "pt". A name that is in the file twice, of which the library gives the
    last, is refused, too.
    """
    check_regular(path)
    try:
        with safetensors.safe_open(str(path), framework=framework) as file:
            _check_names(path)
            yield file
    except (OSError, safetensors.SafetensorError, *_UNREADABLE) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:160]
        problem, hint = f"is no whole safetensors file ({first})", "replace or make it again"
        raise BadFile(path, problem, hint) from error


# Of types that NumPy lacks, shapes that no array has, and a header that repeats itself.
_UNREADABLE = (TypeError, AttributeError, ValueError, MemoryError, RuntimeError, OverflowError)


def _check_names(path: str | Path) -> None:
    """ValueError for a safetensors file (of a valid header) that has a name twice."""

    with open(path, "rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    try:
        json.loads(header, object_pairs_hook=unique)
    except TwiceError as error:
        raise ValueError(f"it has {error.args[0][:80]!a} twice") from error


def is_whole(path: str | Path) -> bool:
    """Whether a safetensors file is there that `open_tensors` opens: its header fits its length."""
    try:
        with open_tensors(path, "numpy"):
            return True
    except BadFile:
        return False


def parse_arrays(data: bytes, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays, metadata) of a safetensors file's bytes, e.g. a record of a pack.

    Raises `BadFile` with `name` when they are not a whole file.
    """
    try:
        arrays = safetensors.numpy.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return arrays, header.get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError) as error:
        hint = "make it again"
        raise BadFile(name, f"is no whole safetensors file ({error})", hint) from error


def fingerprint(value: Any) -> str:
    """SHA-256 (first 16 hex digits) of a JSON-able value; dictionaries in any order are equal."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(path: str | Path) -> str:
    """SHA-256 (first 16 hex digits) of a file's bytes; `BadFile` for a pipe, device or folder."""
    check_regular(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
