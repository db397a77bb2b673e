"""Arrays in pickles (detectron2's and MSRA's weights, proposal files) without running the rest.

NumPy lets a pickle set the state of a dtype or array and believes it, so neither is done: a dtype
is one of a list of names, an array its bytes, whose number must be that of its shape.
"""

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

from bridge.weights.machine import Known, Unbuilt, fill_dict, load, shown
from weaksam_jax.errors import BadInput
from weaksam_jax.files import check_regular

# What reading a file raises that is cut short, empty, of another kind, or holds objects: plain
# pickles, PyTorch checkpoints and TorchScript archives alike.
BROKEN = (
    *(UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error, EOFError, OSError),
    *(RuntimeError, ValueError, LookupError, TypeError, AttributeError, ImportError),
    *(MemoryError, ArithmeticError, AssertionError),
)
PLAIN = ("b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
MOST_DIMENSIONS = 32


def read_pickle(path: str | Path, hint: str = "give a pickle of arrays alone") -> Any:
    """The content of a pickle of NumPy arrays, scalars, lists, dicts, tuples and texts.

    Every protocol is read, as Python 2 and 3 and NumPy 1 and 2 write it; arrays may be read-only.
    Raises `BadInput` when the file is missing, cut short, no pickle, asks for anything else (with
    that hint), or for much more memory than it has bytes; nothing that it names is imported or run.
    """
    try:
        with mapped(path) as file:
            return load(file, len(file), NUMPY.get)
    except BROKEN as error:
        raise BadInput(path, f"is no readable pickle of arrays ({told(error)})", hint) from error


@contextmanager
def mapped(path: str | Path) -> Iterator[mmap]:
    """A file's bytes without reading them all, `BadFile` when there is no such file; what is read
    is never longer than the file, whatever length is asked for."""
    check_regular(path)
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise UnpicklingError("it is empty")
        with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            yield content


def told(error: BaseException) -> str:
    """An error in a few words of one line."""
    first = (str(error).splitlines() or [""])[0]
    return shown(first)[:160] if " " in first else type(error).__name__  # a bare key says nothing


class _Dtype(Unbuilt):
    """A dtype whose byte order follows."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def built(self, state: Any) -> np.dtype:
        _, order, *rest = state if type(state) is tuple and len(state) == 8 else (0, "", state)
        if order not in ("<", ">", "|", "=") or rest != [None, None, None, -1, -1, 0]:
            raise UnpicklingError("it changes a dtype")
        return np.dtype(order + self.name)


class _Array(Unbuilt):
    """An array whose shape, dtype and bytes follow."""

    def built(self, state: Any) -> np.ndarray:
        if type(state) is not tuple or len(state) != 5 or state[0] != 1:
            raise UnpicklingError("it sets the state of an array that is none")
        _, shape, dtype, fortran, data = state
        return _array(data, dtype, shape, order="F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """The array of these bytes (Python 2's: a text of one character each), in this machine's byte
    order."""
    data = data.encode("latin1") if type(data) is str else data
    if type(data) not in (bytes, bytearray) or not isinstance(dtype, np.dtype):
        raise UnpicklingError("it has an array without bytes or dtype")
    sides = shape if type(shape) is tuple and len(shape) <= MOST_DIMENSIONS else (-1,)
    if not all(type(side) is int and side >= 0 for side in sides):
        raise UnpicklingError("it has an array of an impossible shape")
    if math.prod(sides) * dtype.itemsize != len(data):
        raise UnpicklingError(f"it has an array of {shown(shape)} {dtype} in {len(data)} bytes")
    if dtype.kind == "b":  # other bytes than 0 and 1 would be neither true nor false
        return np.ndarray(sides, np.uint8, buffer=data, order=order).astype(bool)
    value = np.ndarray(sides, dtype, buffer=data, order=order)
    return value if dtype.isnative else value.byteswap().view(dtype.newbyteorder("="))


def _dtype(name: str, *flags: Any) -> _Dtype:
    if type(name) is not str or name not in PLAIN:
        raise UnpicklingError(f"it asks for the dtype {shown(name)}")
    return _Dtype(name)


def _reconstruct(kind: Any, shape: Any, typecode: Any) -> _Array:
    if type(kind) is not Known or kind.name != "numpy.ndarray":
        raise UnpicklingError("it asks for an array of another class")
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """An array as protocol 5 writes it; axes: of one that is contiguous in another order."""
    if axes is None:
        return _array(data, dtype, shape, order="F" if order == "F" else "C")
    if type(axes) is not tuple or not all(type(axis) is int for axis in axes):
        raise UnpicklingError("it has an array with impossible axes")
    return _array(data, dtype, shape, order="C").transpose(axes)


def _scalar(dtype: Any, data: Any) -> np.generic:
    return _array(data, dtype, (), order="C")[()]


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocol 2 writes them."""
    if type(text) is not str or encoding != "latin1":
        raise UnpicklingError("it has bytes in an unknown encoding")
    return text.encode("latin1")


def mapping(items: Any = ()) -> dict:
    """An OrderedDict (its pairs were lists once) or Counter, as a dict."""
    pairs = items.items() if type(items) is dict else (tuple(pair) for pair in items)
    return fill_dict({}, pairs)


def table(calls: dict[str, Callable | None]) -> dict[str, Known]:
    """What names lead to; None: to what is not called."""
    return {name: Known(name, call) for name, call in calls.items()}


NUMPY = table(
    {
        "numpy.ndarray": None,
        "numpy.dtype": _dtype,
        "numpy.core.multiarray._reconstruct": _reconstruct,
        "numpy.core.multiarray.scalar": _scalar,
        "numpy.core.numeric._frombuffer": _from_buffer,
        "_codecs.encode": _encode,
        "builtins.bytes": lambda: b"",  # empty ones in protocol 2
        "collections.OrderedDict": mapping,
    }
)
