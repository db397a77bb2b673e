"""Reading published PyTorch checkpoints without running what is inside them."""

import pickle
from pathlib import Path

import torch

from weaksam_jax.errors import BadInput

# What torch.load raises on a file that is cut short, empty, of another kind, or holds objects.
_BROKEN = (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError)


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pth`/`.pt`/`.bin` checkpoint, on the CPU.

    A file `{"model": {...}}` or `{"state_dict": {...}}` is unwrapped, and the prefix `module.`
    of DistributedDataParallel is cut. Only tensors and plain containers are read
    (`weights_only=True`). Raises `BadInput` when the file is missing, truncated or holds no
    tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(path, "does not exist", "check the path of the weights")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        cure = "download it again; files that hold more than tensors are refused"
        raise BadInput(path, f"is no whole PyTorch checkpoint ({first})", cure) from error
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
