"""Tensors of TorchScript archives, without running what is inside them.

OpenAI publishes its weights in this form: a zip of code, storages, and a pickle of the module.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

from torch import Tensor

from bridge.weights.archives import Module, Sparse, Stored, find_script, open_archive
from bridge.weights.pickles import BROKEN, told
from weaksam_jax.errors import BadInput


def is_torchscript(path: str | Path) -> bool:
    """Whether the file is a TorchScript archive (a plain `torch.save` has no constants)."""
    try:
        if not Path(path).is_file():
            return False
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except BROKEN:
        return False


def torchscript_tensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a TorchScript archive by name (parameters, buffers, other attributes), on the CPU.

    Only modules, tensors and plain values are read, as `bridge.weights.archives` does. Raises
    `BadInput` when the archive is damaged or holds something else.
    """
    try:
        with open_archive(Path(path), find_script) as archive:
            if not isinstance(archive.content, Module):
                raise UnpicklingError("it holds no module")
            return {name: archive.named(name, one) for name, one in _stored(archive.content, "")}
    except BROKEN as error:
        hint = "download it again; archives that hold more than modules and tensors are refused"
        raise BadInput(path, f"is no whole TorchScript archive ({told(error)})", hint) from error


def _stored(module: Module, prefix: str) -> Iterator[tuple[str, Stored | Sparse]]:
    """Tensors of a module and those in it (`machine.load` limits how deep)."""
    for name, value in module.items():
        if isinstance(value, Stored | Sparse):
            yield f"{prefix}{name}", value
        elif isinstance(value, Module):
            yield from _stored(value, f"{prefix}{name}.")
