"""Tensors in PyTorch's files, without running what is in them and without believing their sizes.

Three forms: the zip of `torch.save` (a pickle, and a file for the bytes of each storage), the older
one in a row (pickles, then the storages), and TorchScript (a zip whose pickle has modules). A
tensor in the pickle is a storage's name, an offset, sizes and strides; PyTorch would make memory
for whatever they say. Here they are records first (`Stored`), and tensors when they are asked for
and lie inside their storage.
"""

import io
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from mmap import mmap
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from bridge.weights.machine import Find, Known, Unbuilt, load, shown
from bridge.weights.pickles import BROKEN, NUMPY, mapped, mapping, table, told

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MOST_DIMENSIONS = 32
# Bytes that the storages and tensors of a file may take: a multiple of its size, and what any may.
MULTIPLE, ANYWAY = 16, 2**26
DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
}


@dataclass(frozen=True)
class Storage:
    """So many numbers of a dtype in the file of this name."""

    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class Stored:
    """A tensor in a storage, as the file says: nothing is checked yet."""

    storage: Storage
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Sparse:
    """A sparse tensor: indices (of COO), or two of them (of the compressed layouts), and values."""

    layout: str
    indices: tuple[Stored, ...]
    values: Stored
    sizes: tuple[int, ...]


@dataclass
class Archive:
    """A file: the content of its pickle, and a reader of its storages' bytes by name.

    left: bytes that its storages and tensors may still take.
    """

    content: Any
    read: Callable[[str], bytes]
    left: int
    storages: dict[str, Tensor] = field(default_factory=dict)

    def take(self, count: int) -> None:
        """Takes memory; UnpicklingError when the file asks for too much."""
        self.left -= count
        if self.left < 0:
            raise UnpicklingError(f"its tensors would take over {MULTIPLE} times its size")

    def named(self, name: str, stored: Stored | Sparse) -> Tensor:
        """The tensor; UnpicklingError with its name when it cannot be read."""
        try:
            return self.tensor(stored)
        except BROKEN as error:
            raise UnpicklingError(f"{shown(name)}: {told(error)}") from error

    def tensor(self, stored: Stored | Sparse) -> Tensor:
        """A dense tensor on the CPU; UnpicklingError (without its name) when it cannot be."""
        if isinstance(stored, Sparse):
            return self._dense(stored)
        _check_inside(stored)
        key = stored.storage.key
        if key not in self.storages:
            self.storages[key] = self._flat(stored.storage)
        flat = self.storages[key]
        if (flat.dtype, len(flat)) != (stored.storage.dtype, stored.storage.count):
            raise UnpicklingError("its storage is of another type elsewhere")
        self.take(4 * prod(stored.sizes))
        return flat.as_strided(stored.sizes, stored.strides, stored.offset)

    def _flat(self, storage: Storage) -> Tensor:
        data = bytearray(self.read(storage.key))
        if len(data) != storage.count * storage.dtype.itemsize:
            problem = f"{len(data)} bytes are there for {storage.count} {storage.dtype}"
            raise UnpicklingError(problem)
        self.take(len(data))
        if not data:
            return torch.empty(0, dtype=storage.dtype)
        if storage.dtype == torch.bool:  # other bytes than 0 and 1 would be neither
            return torch.frombuffer(data, dtype=torch.uint8) != 0
        return torch.frombuffer(data, dtype=storage.dtype)

    def _dense(self, stored: Sparse) -> Tensor:
        _check_sides(stored.sizes, "size")
        self.take(stored.values.storage.dtype.itemsize * prod(stored.sizes))
        *indices, values = (self.tensor(one) for one in (*stored.indices, stored.values))
        if stored.layout == "torch.sparse_coo":
            make = torch.sparse_coo_tensor
        else:
            layout = getattr(torch, stored.layout.removeprefix("torch."))
            make = partial(torch.sparse_compressed_tensor, layout=layout)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch calls the compressed layouts beta
            return make(*indices, values, size=stored.sizes, check_invariants=True).to_dense()


def _check_sides(sides: Any, what: str) -> None:
    whole = type(sides) is tuple and len(sides) <= MOST_DIMENSIONS
    if not whole or not all(type(side) is int and 0 <= side < 2**62 for side in sides):
        raise UnpicklingError(f"its {what} is impossible")


def _check_inside(stored: Stored) -> None:
    """UnpicklingError for a tensor that is not wholly inside its storage."""
    _check_sides(stored.sizes, "size")
    _check_sides(stored.strides, "stride")
    _check_sides((stored.offset, stored.storage.count), "offset")
    if len(stored.sizes) != len(stored.strides):
        raise UnpicklingError("it has strides for another number of dimensions")
    reach = sum((n - 1) * step for n, step in zip(stored.sizes, stored.strides, strict=True))
    if prod(stored.sizes) and stored.offset + reach >= stored.storage.count:
        raise UnpicklingError("it reaches beyond its storage")


# What names in PyTorch's pickles lead to


def _rebuild(storage: Any, offset: Any, sizes: Any, strides: Any, *rest: Any, **no: Any) -> Stored:
    """rest: requires_grad, hooks and, for conjugated or negated views, which they are."""
    if type(storage) is not Storage or any(rest[2:]):
        raise UnpicklingError(
            "it has a tensor of another kind (conjugated, negated, or no storage)"
        )
    return Stored(storage, offset, sizes=sizes, strides=strides)


def _parameter(data: Any, *rest: Any) -> Stored | Sparse:
    if not isinstance(data, Stored | Sparse):
        raise UnpicklingError("it has a parameter that is no tensor")
    return data


def _rebuild_type(rebuild: Any, kind: Any, arguments: Any, state: Any) -> Stored | Sparse:
    """A tensor with attributes, which are passed over."""
    names = getattr(rebuild, "name", ""), getattr(kind, "name", "")
    known = names[1] in ("torch.Tensor", "torch.nn.parameter.Parameter")
    if not known or not names[0].startswith("torch._utils._rebuild_"):
        raise UnpicklingError(f"it has a tensor of the class {shown(names[1])}")
    return _parameter(rebuild.call(*arguments))


def _sparse(layout: Any, data: tuple) -> Sparse:
    count = 1 if layout == "torch.sparse_coo" else 2
    names = ("coo", "csr", "csc", "bsr", "bsc")
    if layout not in [f"torch.sparse_{one}" for one in names] or len(data) < count + 2:
        raise UnpicklingError("it has a sparse tensor of an unknown layout")
    if not all(type(one) is Stored for one in data[: count + 1]):
        raise UnpicklingError("it has a sparse tensor without its parts")
    return Sparse(layout, data[:count], data[count], sizes=data[count + 1])


class _Attributes(Unbuilt):
    """An object of which only its attributes are wanted."""

    def built(self, state: Any) -> dict:
        if type(state) is not dict:
            raise UnpicklingError("it has an object with a state of its own")
        return Module(state)


class Module(dict):
    """Attributes by name of a TorchScript module, or of argparse's Namespace."""


def _same(value: Any, *rest: Any) -> Any:
    return value


_REBUILD = {"_rebuild_tensor": _rebuild, "_rebuild_tensor_v2": _rebuild}
_REBUILD |= {"_rebuild_parameter": _parameter, "_rebuild_parameter_with_state": _parameter}
_REBUILD |= {"_rebuild_sparse_tensor": _sparse}
CHECKPOINT = NUMPY | table(
    {
        **dict.fromkeys(DTYPES),
        **{f"torch._utils.{name}": call for name, call in _REBUILD.items()},
        "torch._tensor._rebuild_from_type_v2": _rebuild_type,
        **dict.fromkeys(("torch.Tensor", "torch.nn.parameter.Parameter")),
        "torch.serialization._get_layout": _same,
        "torch.device": _same,
        "torch.Size": tuple,
        "collections.Counter": mapping,
        "argparse.Namespace": _Attributes,
        **{
            f"torch.{one}": None
            for one in dir(torch)
            if isinstance(getattr(torch, one), torch.dtype)
        },
    }
)
_JIT = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
TORCHSCRIPT = CHECKPOINT | table(
    {f"torch.jit._pickle.{name}": _same for name in (*_JIT, "restore_type_tag")}
)


def find_script(name: str) -> Known | None:
    """TorchScript's names: its modules have classes of their own."""
    module = Known(name, _Attributes) if name.startswith("__torch__.") else None
    return module or TORCHSCRIPT.get(name)


def _storage(identifier: Any) -> Storage:
    """What an external identifier of a pickle says: ("storage", type, name, device, count)."""
    whole = type(identifier) is tuple and len(identifier) in (5, 6)
    if not whole or identifier[0] != "storage" or any(identifier[5:]):
        raise UnpicklingError("it refers to what is no storage")
    _, kind, key, _, count = identifier[:5]
    if type(kind) is not Known or kind.name not in DTYPES or type(key) is not str:
        raise UnpicklingError("it refers to a storage of an unknown type")
    return Storage(DTYPES[kind.name], key, count)


# Files


@contextmanager
def open_archive(path: Path, find: Find = CHECKPOINT.get) -> Iterator[Archive]:
    """The archive of a file, as long as it is open; find: the names that its pickle may use.

    Raises `BadFile` when there is no such file, and what `bridge.weights.pickles.BROKEN` lists when
    it is damaged.
    """
    with mapped(path) as file:
        most = MULTIPLE * len(file) + ANYWAY
        if file[:4] == b"PK\3\4":
            with zipfile.ZipFile(path) as archive:
                yield _unzipped(archive, find, most)
        elif file[:1] == b"\x80":
            yield _legacy(file, most)
        else:
            raise UnpicklingError("it is neither a zip nor a pickle")


def _unzipped(zipped: zipfile.ZipFile, find: Find, most: int) -> Archive:
    entries = {one.filename: one for one in zipped.infolist()}
    if len(entries) < len(zipped.infolist()):
        (twice, _), *_ = Counter(one.filename for one in zipped.infolist()).most_common(1)
        raise UnpicklingError(f"it has {shown(twice)} twice")
    pickled = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise UnpicklingError(f"it holds {len(pickled)} files data.pkl, not one")
    prefix = pickled[0].removesuffix("data.pkl")

    def read(name: str) -> bytes:
        entry = entries.get(prefix + name)
        if entry is None:
            raise UnpicklingError(f"{shown(name)} is missing in the archive")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnpicklingError(f"{shown(name)} is in an unknown compression")
        if entry.file_size > archive.left:  # what a zip bomb says, and no more is unpacked
            raise UnpicklingError(f"{shown(name)} unpacks to over {MULTIPLE} times the file")
        return zipped.read(entry)

    archive = Archive(None, lambda key: read(f"data/{key}"), most)
    if f"{prefix}byteorder" in entries and read("byteorder") != b"little":
        raise UnpicklingError("it has another byte order than this machine")
    data = read("data.pkl")
    archive.content = load(io.BytesIO(data), len(data), find, load_id=_storage)
    return archive


def _legacy(file: mmap, most: int) -> Archive:
    """A file of before PyTorch 1.6: five pickles, then count and bytes of each storage."""
    storages: dict[str, Storage] = {}

    def load_id(identifier: Any) -> Storage:
        storage = _storage(identifier)
        return storages.setdefault(storage.key, storage)

    def part(load_id: Callable[[Any], Any] | None = None) -> Any:
        return load(file, len(file), CHECKPOINT.get, load_id=load_id)

    if part() != LEGACY_MAGIC or part() != 1001:
        raise UnpicklingError("it is of another kind")
    system = part()
    if type(system) is not dict or system.get("little_endian") is not True:
        raise UnpicklingError("it has another byte order than this machine")
    content, keys, places = part(load_id), part(), {}
    for key in keys:
        if key not in storages:
            raise UnpicklingError("it has storages without tensors")
        count = int.from_bytes(file.read(8), "little")
        start = file.tell()
        places[key] = slice(start, start + count * storages[key].dtype.itemsize)
        file.seek(places[key].stop)
    return Archive(content, lambda key: file[places[key]], most)
