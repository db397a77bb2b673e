"""Tensors of TorchScript archives, without running what is inside them.

OpenAI publishes its weights in this form: a zip of code, storages, and a pickle of the module.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from bridge.weights.pickles import BROKEN
from weaksam_jax.errors import BadInput

_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


def is_torchscript(path: str | Path) -> bool:
    """Whether the file is a TorchScript archive (a plain `torch.save` has no constants)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def torchscript_tensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a TorchScript archive by name (parameters, buffers, other attributes), on the CPU.

    Only modules, tensors and plain values are unpickled. Raises `BadInput` when the archive is
    damaged or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (data,) = (n for n in archive.namelist() if n.count("/") == 1 and "/data.pkl" in n)
            with archive.open(data) as file:
                root = _Unpickler(file, archive, data.removesuffix("data.pkl")).load()
            return dict(_named_tensors(root, ""))
    except BROKEN as error:
        hint = "download it again; archives that hold more than modules and tensors are refused"
        raise BadInput(path, f"is no whole TorchScript archive ({error})", hint) from error


class _Module:
    """Attributes of a pickled module."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = dict(state)


class _Unpickler(pickle.Unpickler):
    """Knows modules (as bare attributes), tensors and plain values, and refuses all else."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, prefix: str):
        super().__init__(file)
        self.archive, self.prefix = archive, prefix
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Callable | type | torch.dtype:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":  # values with their type behind them
            return lambda value, *kind: value
        raise pickle.UnpicklingError(f"{module}.{name} is no tensor")

    def persistent_load(self, pid: tuple) -> Tensor:
        _, kind, key, *_ = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.prefix}data/{key}"))
            self.storages[key] = torch.frombuffer(content, dtype=kind)
        return self.storages[key]


def _tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *rest: object) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _named_tensors(module: _Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _named_tensors(value, f"{prefix}{name}.")
