"""VGG16: its layers in published files and here, and its ImageNet weights.

No published file was at hand: names and shapes are those that the public sources give. ImageNet:
`features.{0,2,5,...,28}`; fully connected layers `classifier.0` and `.3` (torchvision) or
`classifier.1` and `.4` (Caffe's weights by J. Johnson, vgg16-00b39a1b.pth). Inferred: the numbers 1
and 4, from wetectron's layers, which load that file by the ends of names.

Layouts here are those of `weaksam_jax.backbones.vgg16`: convolutions are HWIO; fc6 takes RoI
features flattened as (row, column, channel), where PyTorch flattens (channel, row, column). Widths
are the tensors'.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bridge.weights.checkpoints import read_checkpoint
from bridge.weights.machine import shown
from bridge.weights.naming import fractions
from weaksam_jax.errors import BadInput

Arrays = dict[str, np.ndarray]
Layers = Mapping[str, str]  # layers here -> published layers, in the order in which they are passed
CONVOLUTIONS = tuple(
    f"conv{block}_{layer}"
    for block, count in enumerate((2, 2, 3, 3, 3), 1)
    for layer in range(1, count + 1)
)
_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # in torchvision's `features`
HINT = "give VGG16 without batch norm, in the layout of the kind that is named"


def numbered(prefix: str) -> dict[str, str]:
    """The backbone's layers in a file that numbers them as torchvision's `features`."""
    places = zip(CONVOLUTIONS, _PLACES, strict=True)
    return {f"backbone/{name}": f"{prefix}.{place}" for name, place in places}


CAFFE = numbered("features") | {"fc6": "classifier.1", "fc7": "classifier.4"}
TORCHVISION = numbered("features") | {"fc6": "classifier.0", "fc7": "classifier.3"}


def vgg16_arrays(source: str | Path) -> tuple[Arrays, dict[str, str]]:
    """(arrays, metadata) of ImageNet's VGG16: `backbone/conv{i}_{j}`, `fc6` and `fc7`, each with
    `/kernel` and `/bias`, float32.

    The two layouts differ in the numbers of their `classifier`. Caffe's weights were trained on BGR
    in 0..255 less (103.939, 116.779, 123.68), torchvision's on RGB as ImageNet's statistics say
    (`weaksam_jax.data.pixel_statistics`). Caffe's weights renumbered to torchvision's keys cannot
    be told apart and are taken for torchvision's. Raises `BadInput` naming a tensor that is
    missing, of another shape or unknown.
    """
    tensors = read_checkpoint(source)
    caffe = "classifier.1.weight" in tensors
    arrays = take_layers(source, tensors, CAFFE if caffe else TORCHVISION, outputs={})
    refuse_others(source, tensors, ("classifier.6.",))
    return arrays, {"backbone": "vgg16", "pixels": "bgr" if caffe else "rgb"}


def take_layers(
    source: str | Path, tensors: dict[str, Tensor], layers: Layers, outputs: Mapping[str, int]
) -> Arrays:
    """Takes layers out of `tensors`. Each has the outputs of the one before as inputs, but for the
    heads, which all have fc7's; outputs: how many of each head. Raises `BadInput`."""
    arrays: Arrays = {}
    inputs = 3
    for ours, theirs in layers.items():
        weight, bias = _take(source, tensors, theirs)
        count, side = outputs.get(ours, bias.size), 1
        convolution = ours.startswith("backbone/")
        if convolution:
            side = 3
        elif ours == "fc6":  # the side of the pooled features
            side = max(1, round((weight.size / max(1, count * inputs)) ** 0.5))
        window = (inputs, 3, 3) if convolution else (inputs * side * side,)
        _check(source, f"{theirs}.weight", weight, shape=(count, *window))
        _check(source, f"{theirs}.bias", bias, shape=(count,))
        kernel = weight.reshape(count, inputs, side, side).transpose(2, 3, 1, 0)
        arrays[f"{ours}/kernel"] = kernel if convolution else kernel.reshape(-1, count)
        arrays[f"{ours}/bias"] = bias
        inputs = count if feeds_on(ours) else inputs
    return arrays


def put_layers(source: str | Path, arrays: Arrays, layers: Layers, hint: str) -> dict[str, Tensor]:
    """The inverse of `take_layers`: takes layers out of `arrays`. Raises `BadInput` with `source`
    and that hint for a layer that is missing."""
    tensors, inputs = {}, 3
    for ours, theirs in layers.items():
        if not {f"{ours}/kernel", f"{ours}/bias"} <= arrays.keys():
            raise BadInput(source, f"has no layer {ours}", hint)
        kernel, bias = arrays.pop(f"{ours}/kernel"), arrays.pop(f"{ours}/bias")
        side = round((kernel.size / max(1, inputs * bias.size)) ** 0.5)
        fits = kernel.size and side * side * inputs * bias.size == kernel.size
        if not fits or bias.shape != kernel.shape[-1:]:
            shapes = f"kernel {kernel.shape} and bias {bias.shape}"
            raise BadInput(source, f"{ours} has {shapes} behind {inputs} channels", hint)
        weight = kernel.reshape(side, side, inputs, -1).transpose(3, 2, 0, 1)
        weight = weight if kernel.ndim == 4 else weight.reshape(bias.size, -1)
        tensors[f"{theirs}.weight"] = torch.from_numpy(np.ascontiguousarray(weight))
        tensors[f"{theirs}.bias"] = torch.from_numpy(np.ascontiguousarray(bias))
        inputs = bias.size if feeds_on(ours) else inputs
    return tensors


def feeds_on(layer: str) -> bool:
    """Whether the next layer reads what this one gives (heads are read by nobody)."""
    return layer.startswith(("backbone/", "fc"))


def refuse_others(
    source: str | Path, tensors: Mapping[str, Tensor], unused: tuple[str, ...]
) -> None:
    """`BadInput` for a tensor that is left and whose name does not begin with one of `unused`."""
    left = [name for name in tensors if not name.startswith(unused)]
    if left:
        raise BadInput(source, f"has an unknown tensor {shown(min(left))}", HINT)


def _take(source: str | Path, tensors: dict[str, Tensor], layer: str) -> list[np.ndarray]:
    """Weight and bias of a published layer, float32, no longer in `tensors`."""
    names = (f"{layer}.weight", f"{layer}.bias")
    values = [tensors.pop(name, None) for name in names]
    for name, value in zip(names, values, strict=True):
        if value is None:
            raise BadInput(source, f"has no tensor {name}", HINT)
    pairs = zip(names, values, strict=True)
    return [fractions(value.numpy(), name, source, hint=HINT) for name, value in pairs]


def _check(source: str | Path, name: str, value: np.ndarray, shape: tuple[int, ...]) -> None:
    if not value.size:
        raise BadInput(source, f"{name} has the shape {value.shape}: it is empty", HINT)
    if value.shape != shape:
        raise BadInput(source, f"{name} has the shape {value.shape}, not {shape}", HINT)
