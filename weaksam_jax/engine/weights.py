"""Parameters as files, and files into parameters: the one place for both.

Parameters are nested dictionaries of arrays; a file (safetensors) has their names joined by "/" and
metadata that say what it is (docs/file_formats.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays, write_arrays

Params = dict[str, Any]
MOST_PARENTS = 64


@dataclass(frozen=True)
class Weights:
    """A weights file: its path, its arrays by name and its metadata."""

    path: Path
    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]

    def part(self, prefix: str) -> "Weights":
        """The arrays below `prefix` ("backbone/"), named without it."""
        own = {
            name.removeprefix(prefix): value
            for name, value in self.arrays.items()
            if name.startswith(prefix)
        }
        return Weights(self.path, own, self.metadata)


def read_weights(path: str | Path) -> Weights:
    """Raises `BadInput` when the file is missing or damaged."""
    return Weights(Path(path), *read_arrays(path))


def flatten(params: Mapping) -> dict[str, Any]:
    """{"backbone/conv/kernel": leaf} of a nested dictionary."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(entry.key for entry in path): leaf for path, leaf in leaves}


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The nested dictionary of names joined by "/"; ValueError for an array with others below."""
    params: Params = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        place = params
        for parent in parents:
            place = place.setdefault(parent, {})
        if last in place:
            raise ValueError(f"{name} is an array and the parent of others")
        place[last] = leaf
    return params


def save_params(
    path: str | Path, params: Mapping, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes parameters atomically."""
    flat = flatten(jax.device_get(params))
    write_arrays(path, {name: np.asarray(value) for name, value in flat.items()}, metadata)


def load_params(path: str | Path) -> Params:
    """The nested NumPy arrays that `save_params` wrote; `BadInput` when damaged."""
    flat = read_arrays(path)[0]
    try:
        if any(name.count("/") > MOST_PARENTS for name in flat):
            raise ValueError(f"over {MOST_PARENTS} parts in a name")
        return unflatten(flat)
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # an array as a parent
        problem = "has names of arrays that are no tree"
        raise BadInput(path, problem, "replace or make it again") from error


def check_numbers(path: Path, name: str, value: np.ndarray, hint: str) -> None:
    """`BadInput` for a parameter of whole or complex numbers, or with NaN or infinity."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise BadInput(path, f"{name} holds {value.dtype}, no floating point numbers", hint)
    if not np.isfinite(value).all():
        raise BadInput(path, f"{name} holds NaN or infinity", hint)


def fill(
    own: Params,
    weights: Weights,
    *,
    optional: Callable[[str], bool] = lambda name: False,
    unknown: bool = False,
    hint: str = "give weights of the same network",
) -> Params:
    """`own` (a tree of arrays or of their shapes) with the arrays of `weights` in their place.

    optional: names that the file may lack (they stay as in `own`); unknown: whether it may hold
    names that `own` has no place for (they are passed over). Raises `BadInput` with the file's path
    that names the first tensor that is missing, unknown, of another shape, or not of finite
    floating point numbers.
    """
    places = flatten(own)
    if not unknown:
        for name in sorted(weights.arrays.keys() - places.keys()):
            raise BadInput(weights.path, f"has an unknown tensor {name}", hint)
    filled = {}
    for name, place in places.items():
        given = weights.arrays.get(name)
        if given is None and not optional(name):
            raise BadInput(weights.path, f"has no tensor {name}", hint)
        if given is not None and given.shape != place.shape:
            problem = f"{name} has the shape {list(given.shape)}, not {list(place.shape)}"
            raise BadInput(weights.path, problem, hint)
        if given is not None:
            check_numbers(weights.path, name, given, hint=hint)
        filled[name] = place if given is None else jnp.asarray(given, place.dtype)
    return unflatten(filled)
