"""Packed stores: the files of a split's images as records of a few ArrayRecord shards.

Layout of `<root>/<split>/`: `00000.array_record`, `00001.array_record`, ... and `pack.json`, which
is written last and has a checksum of every shard. Record k of shard s is, byte for byte, the
safetensors file of the image `images[s * per_shard + k]`; `images` is sorted. A hundred thousand
small files become tens of large ones, which network file systems and copies like better; random
access stays.
"""

import errno
import os
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from weaksam_jax.data.sealed import (
    file_digest,
    is_sealed_json,
    open_arrays,
    read_sealed_json,
    write_sealed_json,
)
from weaksam_jax.data.store_checks import ids_fit
from weaksam_jax.errors import BadInput
from weaksam_jax.files import atomic_path, check_replaced

INDEX = "pack.json"
FORMAT = 2
_HINT = "copy or pack it again (python -m bridge.pack)"
# One record per group: a reader decompresses the image it asks for and no other.
_WRITE_OPTIONS = "group_size:1"
_READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class Pack:
    """An opened pack. Any thread may read; `images`: sorted ids."""

    def __init__(self, folder: Path):
        """Raises `BadInput` when a shard is missing, of another size than written, or no pack."""
        index = read_sealed_json(folder / INDEX)
        if not _is_index(index):
            raise BadInput(folder / INDEX, "is no index of a pack of this version", _HINT)
        self.folder, self.images = folder, index["images"]
        self._per_shard, self._lock = index["per_shard"], threading.Lock()
        self._readers, self._digests = [], index["checksums"]
        for number, size in enumerate(index["bytes"]):
            path = shard_path(folder, number)
            found = path.stat().st_size if path.exists() else None
            if found != size:
                problem = (
                    "does not exist" if found is None else f"has {found} bytes instead of {size}"
                )
                raise BadInput(path, problem, _HINT)
            self._readers.append(_array_record().ArrayRecordReader(str(path), _READ_OPTIONS))

    def record(self, image_id: int) -> bytes:
        """The file of one image; `BadInput` when the pack does not have it or is damaged there."""
        place = bisect_left(self.images, image_id)
        if place == len(self.images) or self.images[place] != image_id:
            raise BadInput(self.folder / INDEX, f"has no image {image_id}", _HINT)
        number, row = divmod(place, self._per_shard)
        try:
            with self._lock:
                return self._readers[number].read([row])[0]
        except RuntimeError as error:  # how the library reports every fault
            problem = f"image {image_id} cannot be read ({_first_line(error)})"
            raise BadInput(shard_path(self.folder, number), problem, _HINT) from error

    def damaged(self) -> Iterator[Path]:
        """Shards that are not, byte for byte, what was written; reads all of them."""
        for number, digest in enumerate(self._digests):
            path = shard_path(self.folder, number)
            if file_digest(path) != digest:
                yield path

    def read(self, image_id: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """(arrays, metadata) of one image."""
        where = f"{self.folder / INDEX}, image {image_id}"
        return open_arrays(self.record(image_id), where)


def _is_index(index: Mapping[str, Any]) -> bool:
    """Whether the values of a pack.json are of the right types and fit together."""
    images, count = index.get("images"), index.get("per_shard")
    if index.get("format") != FORMAT or not ids_fit(images) or type(count) is not int or count < 1:
        return False
    sizes, digests = index.get("bytes"), index.get("checksums")
    shards = -(-len(images) // count)
    of_sizes = isinstance(sizes, list) and all(type(one) is int for one in sizes)
    of_digests = isinstance(digests, list) and all(isinstance(one, str) for one in digests)
    return of_sizes and of_digests and len(sizes) == len(digests) == shards


def open_pack(folder: Path) -> Pack | None:
    """The pack in a split's folder, opened once per process; None where there is none."""
    try:
        written = (folder / INDEX).stat()
    except OSError:
        return None
    return _opened(folder, written.st_mtime_ns, written.st_size, _process=os.getpid())


@lru_cache(maxsize=8)
def _opened(folder: Path, _mtime: int, _size: int, _process: int) -> Pack:
    return Pack(folder)


def write_pack(
    folder: Path, images: Sequence[int], files: Iterable[bytes], per_shard: int = 1024
) -> None:
    """Writes a pack of `files`, one for each of the sorted `images`, `per_shard` to a shard.

    Shards are whole or absent and the index comes last. The same files give the same bytes.
    `BadInput`, before anything is written, in place of a file that is no pack's.
    """
    check_pack(folder, -(-len(images) // per_shard))
    writer_of, files = _array_record().ArrayRecordWriter, iter(files)
    sizes, digests = [], []
    for number, start in enumerate(range(0, len(images), per_shard)):
        path = shard_path(folder, number)
        with atomic_path(path) as temporary:
            try:
                writer = writer_of(str(temporary), _WRITE_OPTIONS)
                for _ in images[start : start + per_shard]:
                    writer.write(next(files))
                writer.close()
            except RuntimeError as error:
                if os.strerror(errno.ENOSPC) in str(error):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
                raise
        sizes.append(path.stat().st_size)
        digests.append(file_digest(path))
    index = {"format": FORMAT, "per_shard": per_shard, "bytes": sizes, "checksums": digests}
    write_sealed_json(folder / INDEX, {**index, "images": list(images)})


def check_pack(folder: Path, shards: int) -> None:
    """`BadInput` when a pack of so many shards would replace a file that is no pack's."""
    check_replaced(folder / INDEX, is_sealed_json)
    for number in range(shards):
        check_replaced(shard_path(folder, number), _is_shard)


def _is_shard(path: Path) -> bool:
    """Whether a shard is a pack's: there is its index, or its first record is a sealed file (a
    writer that was killed left no index)."""
    if (path.parent / INDEX).is_file():
        return is_sealed_json(path.parent / INDEX)
    try:
        reader = _array_record().ArrayRecordReader(str(path), _READ_OPTIONS)
        open_arrays(reader.read([0])[0], str(path))
    except (RuntimeError, IndexError, BadInput):
        return False
    return True


def shard_path(folder: Path, number: int) -> Path:
    """The file of one shard."""
    return folder / f"{number:05d}.array_record"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _array_record() -> ModuleType:
    """The library; `BadInput` where it is not installed (it has no build for Windows)."""
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        hint = "pip install array-record, or use the store of single files"
        raise BadInput("array_record", f"is not installed ({error.name})", hint) from error
    return array_record_module
