"""ResNet-50 and Faster R-CNN R50-FPN weights of torchvision, detectron2 and MSRA, both ways.

Names here are those of `weaksam_jax.backbones.resnet.ResNet50` and
`weaksam_jax.detectors.faster_rcnn.model.FasterRCNN` joined by "/"; a convolution kernel is
`[k, k, in, out]`, a dense kernel `[in, out]`. Any width, number of classes and of channels is
taken: they are read off the tensors, and every other tensor must fit them.

Metadata: `kind`; `pixels` of the ImageNet weights ("torchvision" or "msra"); and, of a detector,
what the shapes do not tell: `backbone`, `aligned`, `round_anchors` (settings of the same names),
`classes` (a JSON list of their names in the file's order where it is known, else their number), and
torchvision's `epsilon`.
"""

import json
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path

import numpy as np

from bridge.released_pickles import read_pickle
from bridge.weights.checkpoints import read_checkpoint
from bridge.weights.names import (
    DETECTRON2,
    RESNET_MSRA,
    RESNET_TORCHVISION,
    TORCHVISION,
    Naming,
    Taken,
    conv_names,
    numbers,
)
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_arrays

Arrays = dict[str, np.ndarray]
BATCH_NORM_EPSILON = 1e-5
# What detectron2's models from MSRA's weights subtract (BGR, 0..255) and divide by.
MSRA_PIXELS = {"pixel_mean": (103.53, 116.28, 123.675), "pixel_std": (1.0, 1.0, 1.0)}


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
    to: str | Path,
    source: str | Path,
    epsilon: float | None = None,
    classes: Sequence[str] | None = None,
) -> Path:
    """torchvision's `fasterrcnn_resnet50_fpn` state_dict -> parameters of
    `FasterRCNN(ResNet50(), aligned=False, round_anchors=True)`.

    epsilon: of the batch norm, which the file does not tell. torchvision runs its published COCO
    weights, and what was trained on from them, with 0, every other detector with
    `BATCH_NORM_EPSILON`. None: 0 for the published file (91 outputs under the names of before
    0.14), else `BATCH_NORM_EPSILON`. classes: their names in the file's order, without background;
    None: COCO's (with gaps) where there are 91 outputs.
    """
    tensors = _read_numpy(source)
    coco = np.shape(tensors.get("roi_heads.box_predictor.cls_score.bias")) == (91,)
    if epsilon is None:
        published = coco and "rpn.head.conv.weight" in tensors
        epsilon = 0.0 if published else BATCH_NORM_EPSILON
    if classes is None and coco:
        classes = torchvision_coco_classes()
    arrays = to_ours(_new_names(tensors), TORCHVISION, source, epsilon)
    stated = {"backbone": "resnet50", "aligned": "False", "round_anchors": "True"}
    stated["epsilon"] = str(epsilon)
    stated["classes"] = _classes(arrays, classes, source)
    return _write(to, arrays, "faster_rcnn_torchvision", "torchvision", **stated)


def torchvision_coco_classes() -> list[str]:
    """Names of the 90 classes of torchvision's COCO detectors; gaps in COCO's ids are "N/A"."""
    import bridge.torchvision_ops  # noqa: F401

    # isort: split
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]


def convert_faster_rcnn_detectron2(
    to: str | Path, source: str | Path, classes: Sequence[str] | None = None
) -> Path:
    """A detectron2 R50-FPN checkpoint (`.pkl` of the model zoo, `.pth` of a training run, such as
    the released retrained ones) -> parameters of `FasterRCNN(ResNet50(stride_in_1x1=True))`.

    classes: their names in the file's order. Raises `BadInput`, too, when the file says that its
    pixels are not MSRA's.
    """
    pickled = Path(source).suffix == ".pkl"
    tensors = _read_pkl(source, "model") if pickled else _read_numpy(source)
    for name, expected in MSRA_PIXELS.items():
        found = np.ravel(numbers(tensors.get(name, np.asarray(expected)), name, source))
        if found.shape != (3,) or np.abs(found - expected).max() > 0.01:
            problem = f"was trained with {name} {found.tolist()}, not {list(expected)}"
            raise BadInput(source, problem, "give a model that starts from MSRA's R-50.pkl")
    arrays = to_ours(tensors, DETECTRON2, source)
    stated = {"backbone": "resnet50_msra", "aligned": "True", "round_anchors": "False"}
    stated["classes"] = _classes(arrays, classes, source)
    return _write(to, arrays, "faster_rcnn_detectron2", "msra", **stated)


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


def _shapes(taken: Taken, naming: Naming) -> dict[str, tuple[int, ...]]:
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
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise BadInput(path, "holds no named tensors", "give a published .pkl of weights")
    return content


def _classes(arrays: Arrays, names: Sequence[str] | None, source: str | Path) -> str:
    """JSON of a detector's class names, or of their number."""
    count = arrays["box_head/cls/bias"].size - 1
    if names is not None and len(names) != count:
        problem = f"has {count} classes without background, not the {len(names)} that are named"
        raise BadInput(source, problem, "name every class, in the file's order")
    return json.dumps(count if names is None else list(names))


def _write(to: str | Path, arrays: Arrays, kind: str, pixels: str, **stated: str) -> Path:
    write_arrays(to, arrays, {"kind": kind, "pixels": pixels, **stated})
    return Path(to)
