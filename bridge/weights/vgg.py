"""VGG16 weights and detectors of two released code bases, to the names and layouts of
`weaksam_jax.backbones` and back.

No released file was at hand: names and shapes are those that the public sources give.

- ImageNet: `features.{0,2,5,...,28}`; fully connected layers `classifier.0` and `.3` (torchvision)
  or `classifier.1` and `.4` (Caffe's weights by J. Johnson, vgg16-00b39a1b.pth). Inferred: the
  numbers 1 and 4, from wetectron's layers, which load that file by the ends of names.
- wetectron (NVlabs/wetectron; WeakSAM's MIST is a fork of it): all names read in its
  `utils/checkpoint.py`, `modeling/backbone/vgg16.py`, `modeling/detector/generalized_rcnn.py` and
  `modeling/roi_heads/weak_head/`; `roi_heads.model_sim` (Sim_Net, which the fork builds and does
  not use) in the fork and in jinhseo/OD-WSCL. Concrete DropBlock's network lies beside the detector
  in the file (`model_cdb`), acts in training alone and is not read.
- mmdet_oicr (researchmm/WSOD2; WeakSAM's OICR is a fork of it): layers read in
  `models/backbones/vgg.py` and `models/roi_heads/bbox_heads/oicr_head.py`. Inferred: the prefixes
  `backbone.` and `roi_head.bbox_head.`, those of mmdet 2's two-stage detectors.

**What shapes do not tell.** In both, class 0 of the refinement branches is the background.
wetectron's box coder lets a box end at x2 + 1: its boxes are exactly
`decode(deltas, boxes + (0, 0, 1, 1)) - (0, 0, 1, 1)` with `weaksam_jax.boxes.decode`, so ours are
the same for deltas of 0 and otherwise up to |dx| / 10 + |exp(dw / 5) - 1| / 2 pixels of the network
input away. mmdet's coder is ours (method "mist" at test applies it), but its RoIPool does not round
a box to whole cells: it pools from x1 / 8 to (x2 + 1) / 8, `weaksam_jax.ops.roi.roi_pool` does not.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from bridge.weights.checkpoints import read_checkpoint
from weaksam_jax.errors import BadInput

Arrays = dict[str, np.ndarray]
CONVOLUTIONS = tuple(
    f"conv{block}_{layer}"
    for block, count in enumerate((2, 2, 3, 3, 3), 1)
    for layer in range(1, count + 1)
)
_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # in `features`
_CLASSIFIER, _PREDICTOR = "roi_heads.feature_extractor.classifier", "roi_heads.predictor"
_HEAD = "roi_head.bbox_head"


def _features(prefix: str) -> dict[str, str]:
    places = zip(CONVOLUTIONS, _PLACES, strict=True)
    return {f"backbone/{name}": f"{prefix}.{place}" for name, place in places}


# Layers here -> published layers, in the order in which they are passed.
CAFFE = _features("features") | {"fc6": "classifier.1", "fc7": "classifier.4"}
TORCHVISION = _features("features") | {"fc6": "classifier.0", "fc7": "classifier.3"}
WETECTRON = {
    **_features("backbone.body.features"),
    **{"fc6": f"{_CLASSIFIER}.1", "fc7": f"{_CLASSIFIER}.4"},
    **{"cls": f"{_PREDICTOR}.cls_score", "det": f"{_PREDICTOR}.det_score"},
    **{f"refine_{k}": f"{_PREDICTOR}.ref{k + 1}" for k in range(3)},
    **{f"deltas_{k}": f"{_PREDICTOR}.bbox_pred{k + 1}" for k in range(3)},
}
MMDET_OICR = {
    **{f"backbone/{name}": f"backbone.{name}" for name in CONVOLUTIONS},
    **{"fc6": f"{_HEAD}.fc1", "fc7": f"{_HEAD}.fc2"},
    **{"cls": f"{_HEAD}.fc_cls1", "det": f"{_HEAD}.fc_cls2"},
    **{f"refine_{k}": f"{_HEAD}.fc_refine{k + 1}" for k in range(3)},
    "box": f"{_HEAD}.fc_bbox",
}
LAYOUTS = {"wetectron": WETECTRON, "mmdet_oicr": MMDET_OICR}
# Published tensors that the detector has no use for, by their first letters.
UNUSED = {"vgg16": ("classifier.6.",), "wetectron": ("roi_heads.model_sim.",), "mmdet_oicr": ()}
_HINT = "give VGG16 without batch norm, in the layout of the kind that is named"


def vgg16_arrays(source: str | Path) -> tuple[Arrays, dict[str, str]]:
    """(arrays, metadata) of ImageNet's VGG16: `backbone/conv{i}_{j}`, `fc6` and `fc7`, each with
    `/kernel` and `/bias`, float32.

    Convolutions are HWIO; fc6 takes RoI features flattened as (row, column, channel), where PyTorch
    flattens (channel, row, column). Widths are the tensors'. The two layouts differ in the numbers
    of their `classifier`; metadata `channels` and `input` say what each was trained on. Caffe's
    weights renumbered to torchvision's keys cannot be told apart and are taken for torchvision's.
    Raises `BadInput` naming a tensor that is missing, of another shape or unknown.
    """
    tensors = read_checkpoint(source)
    caffe = "classifier.1.weight" in tensors
    arrays = _arrays(source, tensors, CAFFE if caffe else TORCHVISION, {})
    _refuse_others(source, tensors, "vgg16")
    if caffe:
        trained = {"channels": "bgr", "input": "bgr, 0..255, less (103.939, 116.779, 123.68)"}
    else:
        trained = {"channels": "rgb", "input": "rgb, 0..1, less (.485, .456, .406), by std"}
    return arrays, {"kind": "vgg16", **trained}


def wetectron_arrays(source: str | Path) -> tuple[Arrays, dict[str, str]]:
    """(arrays, metadata) of a MIST or OICR detector of wetectron: all parameters of `MilDetector`
    over `Vgg16(rectify_last=False)`.

    Without regression (its `OICRPredictor`) the deltas are 0, which leaves proposals where they
    are. Layouts and errors as in `vgg16_arrays`.
    """
    tensors = read_checkpoint(source)
    regression = any(".bbox_pred" in name for name in tensors)
    layers = {k: v for k, v in WETECTRON.items() if regression or not k.startswith("deltas")}
    arrays = _arrays(source, tensors, layers, _head_outputs(tensors, "wetectron"))
    if not regression:
        arrays |= _deltas(arrays, 0.0, 0.0)
    _refuse_others(source, tensors, "wetectron")
    pixels = {"channels": "bgr", "input": "bgr, 0..255, less (102.9801, 115.9465, 122.7717)"}
    return arrays, {"kind": "wetectron", "rectify_last": "False", "background": "True", **pixels}


def mmdet_oicr_arrays(source: str | Path) -> tuple[Arrays, dict[str, str]]:
    """(arrays, metadata) of an OICR detector of WSOD2: all parameters of
    `MilDetector(background=False)` over `Vgg16(rectify_last=True)`.

    Its one regressor for all classes (only in `oicr_bbox_vgg16`) becomes the deltas of every class
    and branch, whose mean is the same; without it they are 0, which leaves proposals where they
    are. Layouts and errors as in `vgg16_arrays`.
    """
    tensors = read_checkpoint(source)
    regression = f"{MMDET_OICR['box']}.weight" in tensors
    layers = {k: v for k, v in MMDET_OICR.items() if regression or k != "box"}
    arrays = _arrays(source, tensors, layers, _head_outputs(tensors, "mmdet_oicr"))
    box = arrays.pop("box/kernel", 0.0), arrays.pop("box/bias", 0.0)
    _refuse_others(source, tensors, "mmdet_oicr")
    pixels = "VOC: bgr, 0..255, less (104, 117, 124); COCO: rgb as torchvision's"
    metadata = {"kind": "mmdet_oicr", "rectify_last": "True", "background": "False"}
    return arrays | _deltas(arrays, *box), metadata | {"input": pixels}


def published_tensors(
    source: str | Path, arrays: Mapping[str, np.ndarray], kind: str
) -> dict[str, torch.Tensor]:
    """The way back: the arrays of a detector here as tensors of "wetectron" or "mmdet_oicr".

    The drop block, which acts in training alone, is left out; "mmdet_oicr" has one regressor, or
    none when all deltas are 0. Raises `BadInput` with `source` when the layout has no place for
    the detector (class maps, the other kind of background, deltas that differ by class).
    """
    hint = f"give a detector with the layers of {kind}"
    rest = {name: value for name, value in arrays.items() if not name.startswith("drop_block/")}
    if kind == "mmdet_oicr":
        rest = _one_regressor(source, rest, hint)
    layers = {k: v for k, v in LAYOUTS[kind].items() if f"{k}/kernel" in rest or k != "box"}
    tensors, inputs = {}, 3
    for ours, theirs in layers.items():
        if not {f"{ours}/kernel", f"{ours}/bias"} <= rest.keys():
            raise BadInput(source, f"has no layer {ours}", hint)
        kernel, bias = rest.pop(f"{ours}/kernel"), rest.pop(f"{ours}/bias")
        side = round((kernel.size / inputs / bias.size) ** 0.5)
        weight = kernel.reshape(side, side, inputs, -1).transpose(3, 2, 0, 1)
        weight = weight if kernel.ndim == 4 else weight.reshape(bias.size, -1)
        tensors[f"{theirs}.weight"] = torch.from_numpy(np.ascontiguousarray(weight))
        tensors[f"{theirs}.bias"] = torch.from_numpy(np.ascontiguousarray(bias))
        inputs = bias.size if ours.startswith(("backbone/", "fc")) else inputs
    if rest:
        raise BadInput(source, f"has {min(rest)}, for which {kind} has no place", hint)
    _arrays(source, dict(tensors), layers, _head_outputs(tensors, kind))  # shapes of that kind
    return tensors


def _arrays(
    source: str | Path,
    tensors: dict[str, torch.Tensor],
    layers: Mapping[str, str],
    outputs: Mapping[str, int],
) -> Arrays:
    """Takes the layers out of `tensors`; each has the outputs of the one before as inputs, but for
    the heads, which all have fc7's. outputs: how many of each head."""
    arrays: Arrays = {}
    inputs = 3
    for ours, theirs in layers.items():
        parts = {name: tensors.pop(name, None) for name in (f"{theirs}.weight", f"{theirs}.bias")}
        for name, value in parts.items():
            if value is None:
                raise BadInput(source, f"has no tensor {name}", _HINT)
        weight, bias = (value.detach().float().numpy() for value in parts.values())
        count = outputs.get(ours, bias.size)
        convolution = ours.startswith("backbone/")
        side = 3 if convolution else 1
        if ours == "fc6":  # the side of the pooled features
            side = max(1, round((weight.size / max(1, count * inputs)) ** 0.5))
        window = (inputs, 3, 3) if convolution else (inputs * side * side,)
        for name, value, shape in zip(
            parts, (weight, bias), ((count, *window), (count,)), strict=True
        ):
            if value.shape != shape:
                raise BadInput(source, f"{name} has the shape {value.shape}, not {shape}", _HINT)
        kernel = weight.reshape(count, inputs, side, side).transpose(2, 3, 1, 0)
        arrays[f"{ours}/kernel"] = kernel if convolution else kernel.reshape(-1, count)
        arrays[f"{ours}/bias"] = bias
        inputs = count if convolution or ours.startswith("fc") else inputs
    return arrays


def _head_outputs(tensors: Mapping[str, torch.Tensor], kind: str) -> dict[str, int]:
    """How many outputs each head has, from those of the first."""
    bias = tensors.get(f"{LAYOUTS[kind]['cls']}.bias")
    if bias is None:
        return {}  # the missing tensor is named when its turn comes
    streams = bias.numel()
    scores = streams + (kind == "mmdet_oicr")  # whose streams have no background
    heads = {"cls": streams, "det": streams, "box": 4}
    heads |= {f"refine_{k}": scores for k in range(3)}
    return heads | {f"deltas_{k}": 4 * scores for k in range(3)}


def _deltas(arrays: Arrays, kernel: np.ndarray | float, bias: np.ndarray | float) -> Arrays:
    """`deltas_{0,1,2}` that are the same four for all classes."""
    width, scores = arrays["refine_0/kernel"].shape
    kernel = np.tile(np.broadcast_to(np.float32(kernel), (width, 4)), (1, scores))
    bias = np.tile(np.broadcast_to(np.float32(bias), 4), scores)
    return {f"deltas_{k}/{p}": v for k in range(3) for p, v in (("kernel", kernel), ("bias", bias))}


def _one_regressor(source: str | Path, arrays: Arrays, hint: str) -> Arrays:
    """The arrays with the deltas as one `box`, or without them when they are all 0."""
    deltas = {name: value for name, value in arrays.items() if name.startswith("deltas_")}
    rest = {name: value for name, value in arrays.items() if name not in deltas}
    if not any(value.any() for value in deltas.values()):
        return rest
    box = {part: deltas[f"deltas_0/{part}"][..., :4] for part in ("kernel", "bias")}
    for name, value in deltas.items():
        first = box[name.rpartition("/")[2]]
        repeated = np.tile(first, (1,) * (value.ndim - 1) + (value.shape[-1] // 4,))
        if not np.array_equal(repeated, value):
            raise BadInput(source, f"{name} differs by class or branch", hint)
    return rest | {f"box/{part}": value for part, value in box.items()}


def _refuse_others(source: str | Path, tensors: Mapping[str, torch.Tensor], kind: str) -> None:
    left = [name for name in tensors if not name.startswith(UNUSED[kind])]
    if left:
        raise BadInput(source, f"has an unknown tensor {min(left)}", _HINT)
