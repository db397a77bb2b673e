"""Arrays in pickles (detectron2's and MSRA's weights, proposal files) without running the rest.

Pickle can run any code, so files are read by an unpickler that knows NumPy arrays and plain
containers and refuses everything else.
"""

import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from weaksam_jax.errors import BadInput

# What reading a file raises that is cut short, empty, of another kind, or holds objects: plain
# pickles, PyTorch checkpoints and TorchScript archives alike.
BROKEN = (
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile, EOFError, OSError, RuntimeError),
    *(ValueError, LookupError, TypeError, AttributeError, ImportError, MemoryError, OverflowError),
)
# NumPy 2 renamed `numpy.core`; both names lead to the same functions.
RENAMED = ("numpy._core.", "numpy.core.")


def read_pickle(path: str | Path, hint: str = "give a pickle of arrays alone") -> Any:
    """The content of a pickle of NumPy arrays, scalars, lists, dicts, tuples and texts.

    Raises `BadInput` when the file is missing, cut short, no pickle, or asks for anything else
    (with that hint); nothing that it names is imported or run then.
    """
    try:
        with open(path, "rb") as file:
            return ArraysOnly(file, encoding="latin1").load()
    except FileNotFoundError as error:
        raise BadInput(path, "does not exist", "check the path") from error
    except BROKEN as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(path, f"is no readable pickle of arrays ({first})", hint) from error


class ArraysOnly(pickle.Unpickler):
    """An unpickler that builds arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        new, old = RENAMED
        place = module.replace(old, new, 1) if module.startswith(old) else module
        if (place, name) in _ARRAY_PARTS:
            return _ARRAY_PARTS[place, name]
        if name == "scalar" and place == _SCALAR_HOME:  # NumPy's own would trust any bytes
            return lambda dtype, data: np.frombuffer(data, dtype)[0]
        if (place, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
            return lambda text, encoding: text.encode("latin1")
        if (place, name) in (("builtins", "bytes"), ("__builtin__", "bytes")):  # empty ones there
            return lambda: b""
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _array_parts() -> dict[tuple[str, str], Any]:
    """What NumPy's own pickles name, under NumPy 2's module names."""
    parts = {("collections", "OrderedDict"): OrderedDict}
    parts |= {("numpy", name): getattr(np, name) for name in ("ndarray", "dtype")}
    array = np.zeros(1).__reduce__()[0]
    buffer = np.zeros(1).__reduce_ex__(5)[0]  # protocol 5 has a way of its own
    return parts | {(part.__module__, part.__name__): part for part in (array, buffer)}


_ARRAY_PARTS = _array_parts()
_SCALAR_HOME = np.float64(1).__reduce__()[0].__module__
