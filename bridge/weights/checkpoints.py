"""Tensors of weights files: read without running what is inside, checked by name, written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bridge.weights.pickles import BROKEN
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays, write_arrays

Network = TypeVar("Network", bound=nn.Module)
NAMES_SHOWN = 8  # of the tensors that do not fit


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.pth`/`.pt`/`.bin` checkpoint, on the CPU.

    A file `{"model": {...}}` or `{"state_dict": {...}}` is unwrapped, and the prefix `module.`
    of DistributedDataParallel is cut. Only tensors and plain containers are read
    (`weights_only=True`). Raises `BadInput` when the file is missing, truncated or holds no
    tensors.
    """
    content = _load(Path(path))
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    named = content.items() if isinstance(content, dict) else ()
    tensors = {
        str(name).removeprefix("module."): value
        for name, value in named
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise BadInput(path, "holds no named tensors", "give a state_dict file")
    return tensors


def _load(path: Path) -> Any:
    """The content of a PyTorch checkpoint."""
    if not path.is_file():
        problem = "is no file" if path.exists() else "does not exist"
        raise BadInput(path, problem, "check the path of the weights")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except BROKEN as error:
        # torch's first line advises to switch the safe reading off: it must not be passed on.
        first = (str(error).splitlines() or [""])[0].split(" In PyTorch 2.6")[0]
        first = first.split(". ")[0]
        first = first if " " in first else type(error).__name__  # a bare key or byte says nothing
        hint = "download it again; files that hold more than tensors are refused"
        raise BadInput(path, f"is no whole PyTorch checkpoint ({first})", hint) from error


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and metadata, of a `.safetensors` file or a PyTorch checkpoint.

    Raises `BadInput` when the file is missing, truncated or something else.
    """
    if Path(path).suffix != ".safetensors":
        return read_checkpoint(path), {}
    arrays, metadata = read_arrays(path)
    return {name: torch.from_numpy(value) for name, value in arrays.items()}, metadata


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file atomically; the same content gives the same bytes."""
    arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
    write_arrays(path, arrays, metadata)


def check_keys(
    path: str | Path, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], hint: str
) -> None:
    """`BadInput` with that hint, naming the tensors of `state` that are not those `wanted`."""
    problems = {
        "missing": sorted(wanted.keys() - state.keys()),
        "not known": sorted(state.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    told = [f"keys {kind}: {_listed(names)}" for kind, names in problems.items() if names]
    if told:
        raise BadInput(path, "; ".join(told), hint)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def filled(
    network: Network,
    state: Mapping[str, Tensor],
    path: str | Path,
    hint: str,
    assign: bool = False,
) -> Network:
    """The network with these weights, frozen, in evaluation mode.

    assign: take the tensors themselves instead of copying them (`load_state_dict`). Raises
    `BadInput` naming keys that do not fit.
    """
    check_keys(path, network.state_dict(), state, hint=hint)
    network.load_state_dict(state, assign=assign)
    return network.eval().requires_grad_(False)
