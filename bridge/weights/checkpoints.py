"""Reading published PyTorch checkpoints without running what is inside them; fingerprints."""

import dataclasses
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import torch
from torch import nn

from weaksam_jax.errors import BadInput
from weaksam_jax.files import fingerprint

# What torch.load raises on a file that is cut short, empty, of another kind, or holds objects.
_BROKEN = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError),
    *(pickle.UnpicklingError, struct.error),
)


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pth`/`.pt`/`.bin` checkpoint, on the CPU.

    A file `{"model": {...}}` or `{"state_dict": {...}}` is unwrapped, and the prefix `module.`
    of DistributedDataParallel is cut. Only tensors and plain containers are read
    (`weights_only=True`). Raises `BadInput` when the file is missing, truncated or holds no
    tensors.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is no file" if path.exists() else "does not exist"
        raise BadInput(path, problem, "check the path of the weights")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        # torch's first line advises to switch the safe reading off: it must not be passed on.
        first = (str(error).splitlines() or [""])[0].split(" In PyTorch 2.6")[0]
        first = first.split(". ")[0]
        first = first if " " in first else type(error).__name__  # a bare key or byte says nothing
        hint = "download it again; files that hold more than tensors are refused"
        raise BadInput(path, f"is no whole PyTorch checkpoint ({first})", hint) from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise BadInput(path, "holds no named tensors", "give a state_dict file")
    tensors = {
        str(name).removeprefix("module."): value
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise BadInput(path, "holds no named tensors", "give a state_dict file")
    return tensors


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 (first 16 hex digits) of a network's named tensors: same weights, same text."""
    return tensors_fingerprint(module.state_dict())


def tensors_fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 (first 16 hex digits) of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        array = np.ascontiguousarray(value.detach().cpu().numpy())
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]


def network_fingerprint(network: object) -> str:
    """Same text for clue networks that compute the same.

    The network's own attribute `fingerprint` when it has one, else of its attributes: tensors and
    those of torch modules, frozen settings, and numbers, texts and tuples as they are. Raises
    TypeError for others: they cannot be compared from one process to the next.
    """
    own = getattr(network, "fingerprint", None)
    if own is not None:
        return str(own)
    parts = {}
    for name, value in vars(network).items():
        if isinstance(value, nn.Module):
            parts[name] = weights_fingerprint(value)
        elif isinstance(value, torch.Tensor):
            parts[name] = tensors_fingerprint({"": value})
        elif dataclasses.is_dataclass(value):
            parts[name] = dataclasses.asdict(value)
        elif isinstance(value, (bool, int, float, str, tuple, list, type(None))):
            parts[name] = repr(value)
        else:
            kind = type(network).__name__
            raise TypeError(f"{kind}.{name} cannot be compared; give {kind} a fingerprint")
    return fingerprint([type(network).__name__, parts])
