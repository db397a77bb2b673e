"""Hashes of files' bytes, and a list of them that spares reading unchanged files again."""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from weaksam_jax.errors import BadFile
from weaksam_jax.files import check_regular, read_json, write_json
from weaksam_jax.progress import progress_bar

# A file that was written just before it was read may be written once more at the "same" time.
_SETTLED_NS = 2 * 10**9


def content_hashes(paths: Sequence[Path], cache: Path | None = None, what: str = "") -> list[str]:
    """BLAKE2 (16 hex digits) of the bytes of each file, in their order.

    cache: a JSON file of hashes by path, size and times of change, read and written: files that are
    the same by these are not read again. It may be deleted or damaged at any time. what: names the
    progress bar. Raises `BadFile` for what is no file or cannot be read.
    """
    known = _read_cache(cache)
    states = [_state(path) for path in paths]
    names = [str(path.resolve()) for path in paths]
    rows = zip(names, paths, states, strict=True)
    new = {name: (path, state) for name, path, state in rows if known.get(name, [])[:3] != state}
    fresh = _hash_all([path for path, _ in new.values()], what)
    for (name, (_, state)), found in zip(new.items(), fresh, strict=True):
        known[name] = [*state, found]
    result = [known[name][3] for name in names]
    if cache is not None and new:
        settled = time.time_ns() - _SETTLED_NS
        write_json(cache, {name: row for name, row in known.items() if max(row[1:3]) < settled})
    return result


def content_hash(path: Path) -> str:
    """As `content_hashes` of one file, kept in this process as long as the file stays the same."""
    return _kept_hash(path, *_state(path))


@lru_cache(maxsize=1_000_000)
def _kept_hash(path: Path, *_state: int) -> str:
    return _hash(path)


def _state(path: Path) -> list[int]:
    """[bytes, time of change, time at which the disk noted a change]: the last is not to be set."""
    check_regular(path)
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _hash_all(paths: list[Path], what: str) -> list[str]:
    with ThreadPoolExecutor(max_workers=4) as pool:
        bar = progress_bar(pool.map(_hash, paths), f"hash {what}", total=len(paths), delay=3)
        try:
            return list(bar)
        except BaseException:  # a file that cannot be read, or Ctrl-C: do not wait for the rest
            pool.shutdown(cancel_futures=True)
            raise


def _hash(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:16]
    except OSError as error:
        raise BadFile(path, f"cannot be read ({error.strerror})", "check the file") from error


def _read_cache(cache: Path | None) -> dict[str, list]:
    """The rows that are whole of the cache."""
    try:
        rows = {} if cache is None else read_json(cache)
    except BadFile:
        return {}
    whole = [int, int, int, str]
    rows = rows.items() if isinstance(rows, dict) else ()
    return {name: row for name, row in rows if isinstance(row, list) and [*map(type, row)] == whole}
