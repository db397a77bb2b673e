"""ResNet-50 and Faster R-CNN R50-FPN of any library as ours, and back.

Names here are those of `weaksam_jax.backbones.resnet.ResNet50` and of the Faster R-CNN of
`weaksam_jax.detectors.faster_rcnn` joined by "/"; a convolution kernel is `[k, k, in, out]`, a
dense kernel `[in, out]`. Any width, number of classes and of channels is taken: they are read off
the tensors, and every other tensor must fit them.
"""

from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bridge.weights.checkpoints import read_checkpoint
from bridge.weights.metadata import detector_metadata
from bridge.weights.naming import HINT, Naming, Taken, conv_names
from bridge.weights.pickles import read_pickle
from weaksam_jax.data.scales import padded_sizes
from weaksam_jax.errors import BadInput

Arrays = dict[str, np.ndarray]
BATCH_NORM_EPSILON = 1e-5
# What both libraries have in common and the arrays do not show.
PYRAMID = {
    "strides": (4, 8, 16, 32, 64),
    "anchor_sizes": ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)),
    "anchor_ratios": (0.5, 1.0, 2.0),
    "extra_levels": 1,
    "canonical_size": 224.0,
    "canonical_level": 2,
}
# The published test: short side 800, long side at most 1333, which both libraries pad to 1344.
SHORT_SIDE, LONG_SIDE, MULTIPLE = 800, 1344, 32
TEST = {
    "tta_scales": [padded_sizes(SHORT_SIDE, LONG_SIDE, MULTIPLE)],
    "tta_flip": False,
    "pre_nms": 1000,
    "post_nms": 1000,
    "score_threshold": 0.05,
    "nms": 0.5,
    "max_detections": 100,
}
PICKLE_HINT = "give a published .pkl of weights"


def faster_rcnn_metadata(
    arrays: Arrays,
    library: Mapping[str, Any],
    classes: Sequence[str] | None,
    source: str | Path,
) -> dict[str, str]:
    """Metadata of a detector: its model's config, and the published test settings.

    library: fields of the model's config that the library determines; widths are the arrays'.
    """
    sizes = {
        "backbone_width": arrays["backbone/stem/norm/scale"].size,
        "channels": arrays["rpn/conv/bias"].size,
        "fc_width": arrays["box_head/fc2/bias"].size,
    }
    config = {"model": {**library, **sizes, **PYRAMID}, "test": TEST}
    count = arrays["box_head/cls/bias"].size - 1
    return detector_metadata("faster_rcnn", config, count, classes=classes, source=source)


def detector_back(
    source: str | Path, arrays: Mapping[str, np.ndarray], naming: Naming
) -> dict[str, Tensor]:
    """A detector's arrays as a library's tensors; `BadInput` with `source` when they do not fit."""
    try:
        tensors = to_theirs(arrays, naming)
    except (KeyError, ValueError) as error:
        raise BadInput(source, f"is no Faster R-CNN R50-FPN ({error})", HINT) from error
    unknown = sorted(arrays.keys() - to_ours(tensors, naming, source).keys())
    if unknown:
        raise BadInput(source, f"has {unknown[0]}, for which the library has no place", HINT)
    return {name: torch.from_numpy(value) for name, value in tensors.items()}


def read_numpy(path: str | Path) -> Arrays:
    """The tensors of a PyTorch checkpoint as arrays."""
    return {name: value.numpy() for name, value in read_checkpoint(path).items()}


def read_pkl(path: str | Path, key: str) -> dict[str, Any]:
    """What a pickle holds by name, alone or under `key`; nothing in it is run (`read_pickle`)."""
    content = read_pickle(path, PICKLE_HINT)
    content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise BadInput(path, "holds no named tensors", PICKLE_HINT)
    return content


def to_ours(
    tensors: Mapping[str, np.ndarray],
    naming: Naming,
    path: str | Path,
    epsilon: float = BATCH_NORM_EPSILON,
) -> Arrays:
    """A library's tensors as ours, float32; `path` is named in errors.

    Batch norm becomes scale = weight / sqrt(variance + epsilon) and bias - mean * scale, computed
    in float64. Raises `BadInput` for the first tensor that is missing, unknown or misshaped.
    """
    taken = Taken(tensors, path)
    shapes = _shapes(taken, naming)
    root = "backbone/" if naming.layers else ""
    arrays: Arrays = {}
    for name in conv_names():
        arrays[f"{root}{name}/conv/kernel"] = transpose(taken(naming.kernel(name), shapes[name]))
        norm = [taken(one, shapes[name][:1]).astype(np.float64) for one in naming.norm(name)]
        if len(norm) == 4 and (norm[3] < 0).any():
            raise BadInput(path, f"{naming.norm(name)[3]} holds variances below 0", HINT)
        scale, bias = _folded(norm, epsilon)
        arrays[f"{root}{name}/norm/scale"], arrays[f"{root}{name}/norm/bias"] = scale, bias
    for name, theirs in naming.layers.items():
        weight = taken(f"{theirs}.weight", shapes[name])
        bias = taken(f"{theirs}.bias", shapes[name][:1])
        if name == "box_head/fc1":
            weight = _turn_pooled(weight, shapes["rpn/conv"][0], channels_first=True)
        elif naming.background_first:
            weight, bias = _background_last(name, weight), _background_last(name, bias)
        arrays[f"{name}/kernel"], arrays[f"{name}/bias"] = transpose(weight), bias
    taken.check_unknown(naming.ignored)
    with np.errstate(over="ignore"):
        return {name: np.ascontiguousarray(value, np.float32) for name, value in arrays.items()}


def to_theirs(arrays: Mapping[str, np.ndarray], naming: Naming) -> Arrays:
    """Our arrays under a library's names and layouts: the inverse of `to_ours`.

    Batch norm gets mean 0 and variance 1 - 1e-5, which the libraries' epsilon completes to 1. The
    background's deltas, which the losses never see, are 0. Raises KeyError for a missing array.
    """
    root = "backbone/" if naming.layers else ""
    tensors: Arrays = {}
    for name in conv_names():
        scale, bias = (arrays[f"{root}{name}/norm/{part}"] for part in ("scale", "bias"))
        tensors[naming.kernel(name)] = untranspose(arrays[f"{root}{name}/conv/kernel"])
        rest = (np.zeros_like(scale), np.full_like(scale, 1 - BATCH_NORM_EPSILON))
        tensors |= dict(zip(naming.norm(name), (scale, bias, *rest), strict=False))
    for name, theirs in naming.layers.items():
        weight, bias = untranspose(arrays[f"{name}/kernel"]), arrays[f"{name}/bias"]
        if name == "box_head/fc1":
            weight = _turn_pooled(weight, arrays["rpn/conv/bias"].size, channels_first=False)
        elif naming.background_first:
            weight, bias = _background_first(name, weight), _background_first(name, bias)
        tensors[f"{theirs}.weight"], tensors[f"{theirs}.bias"] = weight, bias
    return {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}


def _folded(norm: list[np.ndarray], epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale and bias of a batch norm: of (scale, bias), or of (scale, bias, mean, variance)."""
    if len(norm) == 2:
        return norm[0], norm[1]
    with np.errstate(divide="ignore", invalid="ignore"):  # a variance of 0 without epsilon
        scale = norm[0] / np.sqrt(norm[3] + epsilon)
        return scale, norm[1] - norm[2] * scale


def _background_last(name: str, value: np.ndarray) -> np.ndarray:
    """Rows of a layer with the background's class score last, and without its deltas."""
    if name == "box_head/cls":
        return np.roll(value, -1, 0)
    return value[4:] if name == "box_head/box" else value


def _background_first(name: str, value: np.ndarray) -> np.ndarray:
    """Rows of a layer with the background's class score, and deltas of 0, first."""
    if name == "box_head/cls":
        return np.roll(value, 1, 0)
    none = ((0, 0),) * (value.ndim - 1)
    return np.pad(value, ((4, 0), *none)) if name == "box_head/box" else value


def _shapes(taken: Taken, naming: Naming) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights in PyTorch's layout, from the few sides that are free."""
    width = taken.shape(naming.kernel("stem"), 4)[0]
    shapes = {name: _conv_shape(name, width) for name in conv_names()}
    return shapes | _layer_shapes(taken, naming, width) if naming.layers else shapes


def _conv_shape(name: str, width: int) -> tuple[int, ...]:
    """Shape of a convolution of the ResNet whose stem has `width` channels."""
    if name == "stem":
        return width, 3, 7, 7
    stage, block, part = name.split("/")
    inner = width * 2 ** (int(stage[3:]) - 2)
    before = inner if stage == "res2" else 2 * inner  # outputs of the stage before
    inputs = before if block == "block0" else 4 * inner
    return {
        "shortcut": (4 * inner, inputs, 1, 1),
        "conv1": (inner, inputs, 1, 1),
        "conv2": (inner, inner, 3, 3),
        "conv3": (4 * inner, inner, 1, 1),
    }[part]


def _layer_shapes(taken: Taken, naming: Naming, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the detector's layers behind the backbone."""
    names = {name: f"{theirs}.weight" for name, theirs in naming.layers.items()}
    channels = taken.shape(names["rpn/conv"], 4)[0]
    anchors = taken.shape(names["rpn/objectness"], 4)[0]
    hidden, pooled = taken.shape(names["box_head/fc1"], 2)
    rows = taken.shape(names["box_head/cls"], 2)[0]
    pyramid = {f"fpn/lateral{i}": (channels, 4 * width * 2**i, 1, 1) for i in range(4)}
    pyramid |= {f"fpn/output{i}": (channels, channels, 3, 3) for i in range(4)}
    return pyramid | {
        "rpn/conv": (channels, channels, 3, 3),
        "rpn/objectness": (anchors, channels, 1, 1),
        "rpn/deltas": (4 * anchors, channels, 1, 1),
        "box_head/fc1": (hidden, channels * isqrt(pooled // channels) ** 2),
        "box_head/fc2": (hidden, hidden),
        "box_head/cls": (rows, hidden),
        "box_head/box": (4 * (rows if naming.background_first else rows - 1), hidden),
    }


def transpose(weight: np.ndarray) -> np.ndarray:
    """`[out, in, k, k]` or `[out, in]` -> `[k, k, in, out]` or `[in, out]`; `[out]` stays."""
    return weight.T if weight.ndim <= 2 else weight.transpose(2, 3, 1, 0)


def untranspose(kernel: np.ndarray) -> np.ndarray:
    """The inverse of `transpose`."""
    return kernel.T if kernel.ndim <= 2 else kernel.transpose(3, 2, 0, 1)


def _turn_pooled(weight: np.ndarray, channels: int, channels_first: bool) -> np.ndarray:
    """`[out, C S S]` -> `[out, S S C]` (channels_first) or the other way round."""
    side = isqrt(weight.shape[1] // channels)
    if channels_first:
        weight = weight.reshape(-1, channels, side, side).transpose(0, 2, 3, 1)
    else:
        weight = weight.reshape(-1, side, side, channels).transpose(0, 3, 1, 2)
    return weight.reshape(len(weight), -1)
