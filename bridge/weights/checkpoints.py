"""Tensors of weights files: read without running what is inside, checked by name, written."""

from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bridge.weights.archives import MOST_DIMENSIONS, Sparse, Stored, open_archive
from bridge.weights.machine import shown
from bridge.weights.pickles import BROKEN, told
from weaksam_jax.errors import BadInput
from weaksam_jax.files import open_tensors, write_arrays

Network = TypeVar("Network", bound=nn.Module)
NAMES_SHOWN = 8  # of the tensors that do not fit


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.pth`/`.pt`/`.bin` checkpoint, on the CPU: dense, without gradient, those
    of fractions as float32.

    A file `{"model": {...}}` or `{"state_dict": {...}}` is unwrapped, and the prefix `module.`
    of DistributedDataParallel is cut. Nothing in the file is run (`bridge.weights.archives`).
    Raises `BadInput` when it is missing, damaged or holds no tensors, for what is no tensor, and
    for a tensor that reaches beyond its storage or is complex.
    """
    try:
        with open_archive(Path(path)) as archive:
            stored = _stored_tensors(archive.content)
            return {name: plain(archive.named(name, one), name) for name, one in stored.items()}
    except BROKEN as error:
        hint = "download it again; files that hold more than tensors are refused"
        raise BadInput(path, f"is no whole PyTorch checkpoint ({told(error)})", hint) from error


def _stored_tensors(content: Any) -> dict[str, Stored | Sparse]:
    """The named tensors of a checkpoint, as stored."""
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    named = content.items() if isinstance(content, dict) else ()
    tensors: dict[str, Stored | Sparse] = {}
    for name, value in named:
        if isinstance(value, Stored | Sparse):
            short = str(name).removeprefix("module.")
            if short in tensors:
                raise UnpicklingError(f"it holds {shown(short)} twice, with module. and without")
            tensors[short] = value
    if not tensors:
        raise UnpicklingError("it holds no named tensors; give a state_dict file")
    return tensors


def plain(value: Tensor, name: str) -> Tensor:
    """A tensor as weights are read: fractions as float32, whole numbers as they are."""
    if value.is_complex() or value.is_quantized:
        raise ValueError(f"{shown(name)} holds {value.dtype}, no real numbers")
    if value.ndim > MOST_DIMENSIONS:
        raise ValueError(f"{shown(name)} has {value.ndim} dimensions")
    return value.float() if value.is_floating_point() else value


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, as `read_checkpoint` gives them, and metadata of a `.safetensors` file or a
    PyTorch checkpoint.

    Raises `BadInput` when the file is missing, truncated or something else.
    """
    if Path(path).suffix != ".safetensors":
        return read_checkpoint(path), {}
    with open_tensors(path, "pt") as file:
        names = file.keys()
        tensors = {name: plain(file.get_tensor(name), name) for name in names}
        return tensors, file.metadata() or {}


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file atomically; the same content gives the same bytes."""
    arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
    write_arrays(path, arrays, metadata)


def check_keys(
    path: str | Path, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], hint: str
) -> None:
    """`BadInput` with that hint, naming the tensors of `state` that are not those `wanted`, are of
    whole numbers where others belong, or hold NaN or infinity."""
    both = {name: (state[name], value) for name, value in wanted.items() if name in state}
    problems = {
        "missing": sorted(wanted.keys() - state.keys()),
        "not known": sorted(state.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {tuple(found.shape)} instead of {tuple(value.shape)}"
            for name, (found, value) in both.items()
            if found.shape != value.shape
        ],
        "of another type": [
            f"{name} {found.dtype} instead of {value.dtype}"
            for name, (found, value) in both.items()
            if found.is_floating_point() != value.is_floating_point() or found.is_complex()
        ],
        "with NaN or infinity": [
            name for name, (found, _) in both.items() if not found.isfinite().all()
        ],
    }
    told = [f"keys {kind}: {_listed(names)}" for kind, names in problems.items() if names]
    if told:
        raise BadInput(path, "; ".join(told), hint)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(map(shown, names[:NAMES_SHOWN])) + more


def fitted(
    make: Callable[[], Network], state: Mapping[str, Tensor], path: str | Path, hint: str
) -> Network:
    """As `filled`, for a network whose sizes are the file's: it is not built (in memory) before
    all tensors fit."""
    with torch.device("meta"):
        empty = make()
    check_keys(path, empty.state_dict(), state, hint=hint)
    return filled(make(), state, path, hint=hint)


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
