"""ResNet-50 and Faster R-CNN R50-FPN weights of torchvision, detectron2 and MSRA, both ways.

Names here are those of `weaksam_jax.models.resnet.ResNet50` and
`weaksam_jax.models.faster_rcnn.FasterRCNN` joined by "/"; a convolution kernel is
`[k, k, in, out]`, a dense kernel `[in, out]`. Any width, number of classes and of channels is
taken: they are read off the tensors, and every other tensor must fit them.
"""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import numpy as np

from bridge.checkpoints import read_checkpoint
from bridge.detector_names import (
    DETECTRON2,
    RESNET_MSRA,
    RESNET_TORCHVISION,
    TORCHVISION,
    Naming,
    conv_names,
)
from bridge.released_pickles import read_pickle
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_arrays

Arrays = dict[str, np.ndarray]
BATCH_NORM_EPSILON = 1e-5
# What detectron2's models from MSRA's weights subtract (BGR, 0..255) and divide by.
MSRA_PIXELS = {"pixel_mean": (103.53, 116.28, 123.675), "pixel_std": (1.0, 1.0, 1.0)}
_CURE = "give weights of the network and library that you named"


def convert_resnet50(to: str | Path, source: str | Path) -> Path:
    """torchvision's ImageNet `resnet50-*.pth` -> parameters of `ResNet50()`."""
    arrays = to_ours(_read_numpy(source), RESNET_TORCHVISION, source)
    return _write(to, arrays, "resnet50", "torchvision")


def convert_resnet50_msra(to: str | Path, source: str | Path) -> Path:
    """MSRA's Caffe2 `R-50.pkl` (detectron2's) -> parameters of `ResNet50(stride_in_1x1=True)`."""
    blobs = _read_pkl(source, "blobs")
    tensors = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
    return _write(to, to_ours(tensors, RESNET_MSRA, source), "resnet50_msra", "msra")


def convert_faster_rcnn_torchvision(
    to: str | Path, source: str | Path, epsilon: float = 0.0
) -> Path:
    """torchvision's `fasterrcnn_resnet50_fpn` state_dict -> parameters of
    `FasterRCNN(ResNet50(), aligned=False, round_anchors=True)`.

    epsilon: of the batch norm; the published COCO weights are run with 0, a network of one's own
    with `BATCH_NORM_EPSILON`.
    """
    arrays = to_ours(_new_names(_read_numpy(source)), TORCHVISION, source, epsilon)
    return _write(to, arrays, "faster_rcnn_torchvision", "torchvision")


def convert_faster_rcnn_detectron2(to: str | Path, source: str | Path) -> Path:
    """A detectron2 R50-FPN checkpoint (`.pkl` of the model zoo, `.pth` of a training run, such as
    the released retrained ones) -> parameters of `FasterRCNN(ResNet50(stride_in_1x1=True))`.

    Raises `BadInput`, too, when the file says that its pixels are not MSRA's.
    """
    pickled = Path(source).suffix == ".pkl"
    tensors = _read_pkl(source, "model") if pickled else _read_numpy(source)
    for name, expected in MSRA_PIXELS.items():
        found = np.ravel(tensors.get(name, expected))
        if found.shape != (3,) or np.abs(found - expected).max() > 0.01:
            problem = f"was trained with {name} {found.tolist()}, not {list(expected)}"
            raise BadInput(source, problem, "give a model that starts from MSRA's R-50.pkl")
    arrays = to_ours(tensors, DETECTRON2, source)
    return _write(to, arrays, "faster_rcnn_detectron2", "msra")


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
    taken = _Taken(tensors, path)
    shapes = _shapes(taken, naming)
    arrays: Arrays = {}
    root = "backbone/" if naming.layers else ""
    for name in conv_names():
        shape = shapes[name]
        arrays[f"{root}{name}/conv/kernel"] = _transpose(taken(naming.kernel(name), shape))
        norm = [taken(one, shape[:1]).astype(np.float64) for one in naming.norm(name)]
        scale, bias = norm[:2]
        if len(norm) == 4:
            scale = scale / np.sqrt(norm[3] + epsilon)
            bias = bias - norm[2] * scale
        arrays[f"{root}{name}/norm/scale"], arrays[f"{root}{name}/norm/bias"] = scale, bias
    for name, theirs in naming.layers.items():
        weight = taken(f"{theirs}.weight", shapes[name])
        bias = taken(f"{theirs}.bias", shapes[name][:1])
        if name == "box_head/fc1":
            weight = _turn_pooled(weight, shapes["rpn/conv"][0], channels_first=True)
        elif naming.background_first and name == "box_head/cls":
            weight, bias = np.roll(weight, -1, 0), np.roll(bias, -1, 0)
        elif naming.background_first and name == "box_head/box":
            weight, bias = weight[4:], bias[4:]
        arrays[f"{name}/kernel"], arrays[f"{name}/bias"] = _transpose(weight), bias
    taken.check_unknown(naming.ignored)
    return {name: np.ascontiguousarray(value, np.float32) for name, value in arrays.items()}


def to_theirs(arrays: Mapping[str, np.ndarray], naming: Naming) -> Arrays:
    """Our arrays under a library's names and layouts: the inverse of `to_ours`.

    Batch norm gets mean 0 and variance 1 - 1e-5, which the libraries' epsilon completes to 1. The
    background's deltas, which the losses never see, are 0.
    """
    tensors: Arrays = {}
    root = "backbone/" if naming.layers else ""
    for name in conv_names():
        scale, bias = (arrays[f"{root}{name}/norm/{part}"] for part in ("scale", "bias"))
        tensors[naming.kernel(name)] = _untranspose(arrays[f"{root}{name}/conv/kernel"])
        rest = (np.zeros_like(scale), np.full_like(scale, 1 - BATCH_NORM_EPSILON))
        tensors |= dict(zip(naming.norm(name), (scale, bias, *rest), strict=False))
    for name, theirs in naming.layers.items():
        weight, bias = _untranspose(arrays[f"{name}/kernel"]), arrays[f"{name}/bias"]
        if name == "box_head/fc1":
            weight = _turn_pooled(weight, arrays["rpn/conv/bias"].size, channels_first=False)
        elif naming.background_first and name == "box_head/cls":
            weight, bias = np.roll(weight, 1, 0), np.roll(bias, 1, 0)
        elif naming.background_first and name == "box_head/box":
            weight, bias = np.pad(weight, ((4, 0), (0, 0))), np.pad(bias, (4, 0))
        tensors[f"{theirs}.weight"], tensors[f"{theirs}.bias"] = weight, bias
    return {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}


def _shapes(taken: "_Taken", naming: Naming) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights in PyTorch's layout, from the few sides that are free."""
    width = taken.shape(naming.kernel("stem"), 4)[0]
    shapes: dict[str, tuple[int, ...]] = {"stem": (width, 3, 7, 7)}
    for name in conv_names()[1:]:
        stage, block, part = name.split("/")
        inner = width * 2 ** (int(stage[3:]) - 2)
        before = inner if stage == "res2" else 2 * inner  # outputs of the stage before
        inputs = before if block == "block0" else 4 * inner
        shapes[name] = {
            "shortcut": (4 * inner, inputs, 1, 1),
            "conv1": (inner, inputs, 1, 1),
            "conv2": (inner, inner, 3, 3),
            "conv3": (4 * inner, inner, 1, 1),
        }[part]
    if not naming.layers:
        return shapes
    names = {name: f"{theirs}.weight" for name, theirs in naming.layers.items()}
    channels = taken.shape(names["rpn/conv"], 4)[0]
    anchors = taken.shape(names["rpn/objectness"], 4)[0]
    hidden, pooled = taken.shape(names["box_head/fc1"], 2)
    rows = taken.shape(names["box_head/cls"], 2)[0]
    for i in range(4):
        shapes[f"fpn/lateral{i}"] = (channels, 4 * width * 2**i, 1, 1)
        shapes[f"fpn/output{i}"] = (channels, channels, 3, 3)
    return shapes | {
        "rpn/conv": (channels, channels, 3, 3),
        "rpn/objectness": (anchors, channels, 1, 1),
        "rpn/deltas": (4 * anchors, channels, 1, 1),
        "box_head/fc1": (hidden, channels * isqrt(pooled // channels) ** 2),
        "box_head/fc2": (hidden, hidden),
        "box_head/cls": (rows, hidden),
        "box_head/box": (4 * (rows if naming.background_first else rows - 1), hidden),
    }


class _Taken:
    """Tensors by name and shape, remembering which were asked for."""

    def __init__(self, tensors: Mapping[str, np.ndarray], path: str | Path):
        self._tensors, self._path, self._seen = tensors, path, set()

    def __call__(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor of that name; `BadInput` when it is missing or not of that shape."""
        found = self.shape(name, len(shape))
        if found != shape:
            raise BadInput(self._path, f"{name} has the shape {found}, not {shape}", _CURE)
        self._seen.add(name)
        return np.asarray(self._tensors[name])

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor that must have so many dimensions."""
        if name not in self._tensors:
            raise BadInput(self._path, f"has no tensor {name}", _CURE)
        found = np.shape(self._tensors[name])
        if len(found) != dimensions:
            problem = f"{name} has the shape {found}, not {dimensions} dimensions"
            raise BadInput(self._path, problem, _CURE)
        return found

    def check_unknown(self, ignored: tuple[str, ...]) -> None:
        """`BadInput` for tensors that nobody asked for."""
        rest = sorted(set(self._tensors) - self._seen)
        unknown = [
            name
            for name in rest
            if not name.startswith(ignored) and not name.endswith(".num_batches_tracked")
        ]
        if unknown:
            problem = f"holds {len(unknown)} unknown tensors, the first is {unknown[0]}"
            raise BadInput(self._path, problem, _CURE)


def _transpose(weight: np.ndarray) -> np.ndarray:
    """`[out, in, k, k]` or `[out, in]` -> `[k, k, in, out]` or `[in, out]`."""
    return weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0)


def _untranspose(kernel: np.ndarray) -> np.ndarray:
    return kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)


def _turn_pooled(weight: np.ndarray, channels: int, channels_first: bool) -> np.ndarray:
    """`[out, C S S]` -> `[out, S S C]` (channels_first) or the other way round."""
    side = isqrt(weight.shape[1] // channels)
    if channels_first:
        weight = weight.reshape(-1, channels, side, side).transpose(0, 2, 3, 1)
    else:
        weight = weight.reshape(-1, side, side, channels).transpose(0, 3, 1, 2)
    return weight.reshape(len(weight), -1)


def _new_names(tensors: Arrays) -> Arrays:
    """torchvision's names before 0.14, which its published file has, as today's."""
    old = {"rpn.head.conv": "rpn.head.conv.0.0"}
    for blocks in ("inner_blocks", "layer_blocks"):
        old |= {f"backbone.fpn.{blocks}.{i}": f"backbone.fpn.{blocks}.{i}.0" for i in range(4)}
    renamed = {}
    for name, value in tensors.items():
        layer, _, part = name.rpartition(".")
        renamed[f"{old[layer]}.{part}" if layer in old else name] = value
    return renamed


def _read_numpy(path: str | Path) -> Arrays:
    return {name: value.float().numpy() for name, value in read_checkpoint(path).items()}


def _read_pkl(path: str | Path, key: str) -> dict:
    """The named arrays in a pickle, alone or under `key`; nothing in it is run (`read_pickle`)."""
    try:
        content = read_pickle(path)
    except BadInput as error:
        raise BadInput(path, error.problem, "give a published .pkl of weights") from error
    content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise BadInput(path, "holds no named tensors", "give a published .pkl of weights")
    return content


def _write(to: str | Path, arrays: Arrays, kind: str, pixels: str) -> Path:
    write_arrays(to, arrays, {"kind": kind, "pixels": pixels})
    return Path(to)
