"""How a library names the tensors of a ResNet-50 and of a Faster R-CNN on it, and a reader that
takes tensors by name and shape."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bridge.weights.machine import shown
from weaksam_jax.errors import BadInput

BLOCKS = (3, 4, 6, 3)
HINT = "give weights of the network and library that you named"


@dataclass(frozen=True)
class Naming:
    """How a library names the parts of a network.

    kernel: our prefix of a convolution of the ResNet ("stem", "res2/block0/conv1", ..) -> their
    name of its kernel; norm: the same -> theirs of the batch norm behind it: scale, shift, mean and
    variance, or scale and shift alone; layers: our prefix -> theirs, for the parts of the detector
    behind the backbone; background_first: the class order of the box head, whose deltas then have
    rows for the background too; ignored: beginnings of the names that are no weights of ours.
    """

    kernel: Callable[[str], str]
    norm: Callable[[str], tuple[str, ...]]
    layers: Mapping[str, str]
    background_first: bool
    ignored: tuple[str, ...]


def conv_names() -> list[str]:
    """Our prefixes of ResNet-50's 53 convolutions, a block's shortcut before its others."""
    names = ["stem"]
    for stage, blocks in enumerate(BLOCKS, 2):
        for block in range(blocks):
            parts = ((("shortcut",) if block == 0 else ()), ("conv1", "conv2", "conv3"))
            names += [f"res{stage}/block{block}/{part}" for part in sum(parts, ())]
    return names


_STATISTICS = ("weight", "bias", "running_mean", "running_var")


def with_statistics(prefix: str) -> tuple[str, ...]:
    """PyTorch's names of a batch norm's scale, shift, mean and variance."""
    return tuple(f"{prefix}.{part}" for part in _STATISTICS)


class Taken:
    """Tensors by name and shape, remembering which were asked for."""

    def __init__(self, tensors: Mapping[str, np.ndarray], path: str | Path):
        self._tensors, self._path, self._seen = tensors, path, set()

    def __call__(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor of that name; `BadInput` when it is missing or not of that shape."""
        found = self.shape(name, len(shape))
        if found != shape:
            raise BadInput(self._path, f"{name} has the shape {found}, not {shape}", HINT)
        self._seen.add(name)
        return fractions(self._tensors[name], name, self._path, hint=HINT)

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor that must have so many dimensions."""
        if name not in self._tensors:
            raise BadInput(self._path, f"has no tensor {name}", HINT)
        found = np.shape(numbers(self._tensors[name], name, self._path))
        if len(found) != dimensions:
            problem = f"{name} has the shape {found}, not {dimensions} dimensions"
            raise BadInput(self._path, problem, HINT)
        if 0 in found:
            raise BadInput(self._path, f"{name} has the shape {found}: it is empty", HINT)
        return found

    def found_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor; None where there is none of that name."""
        if name not in self._tensors:
            return None
        return np.shape(numbers(self._tensors[name], name, self._path))

    def check_unknown(self, ignored: tuple[str, ...]) -> None:
        """`BadInput` for tensors that nobody asked for."""
        rest = sorted(set(self._tensors) - self._seen)
        unknown = [
            name
            for name in rest
            if not name.startswith(ignored) and not name.endswith(".num_batches_tracked")
        ]
        if unknown:
            problem = f"holds {len(unknown)} unknown tensors, the first is {shown(unknown[0])}"
            raise BadInput(self._path, problem, HINT)


def fractions(value: np.ndarray, name: str, path: str | Path, hint: str) -> np.ndarray:
    """`value` as float32; `BadInput` naming it for whole numbers, and for NaN or infinity."""
    if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
        raise BadInput(path, f"{shown(name)} holds {value.dtype}, no floating point numbers", hint)
    with np.errstate(over="ignore"):
        value = value.astype(np.float32, copy=False)
    if not np.isfinite(value).all():
        raise BadInput(path, f"{shown(name)} holds NaN or infinity", hint)
    return value


def numbers(value: object, name: str, path: str | Path) -> np.ndarray:
    """`value`, which must be an array of numbers: a pickle may hold anything under a name."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        raise BadInput(path, f"{name} is no array of numbers", HINT)
    return value
