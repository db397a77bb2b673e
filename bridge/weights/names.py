"""Names of ResNet-50's and Faster R-CNN R50-FPN's tensors (torchvision, detectron2, MSRA's file),
and a reader that takes tensors by name and shape."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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


def _torchvision(name: str, root: str = "") -> tuple[str, str]:
    """torchvision's prefixes of a convolution and its norm."""
    if name == "stem":
        return f"{root}conv1", f"{root}bn1"
    stage, block, part = name.split("/")
    here = f"{root}layer{int(stage[3:]) - 1}.{block[5:]}"
    if part == "shortcut":
        return f"{here}.downsample.0", f"{here}.downsample.1"
    return f"{here}.{part}", f"{here}.{part.replace('conv', 'bn')}"


def _detectron2(name: str) -> str:
    """detectron2's prefix of a convolution."""
    here = "stem.conv1" if name == "stem" else name.replace("block", "").replace("/", ".")
    return f"backbone.bottom_up.{here}"


def _caffe(name: str) -> tuple[str, str]:
    """Caffe2's prefixes of a convolution and its norm in MSRA's R-50.pkl."""
    if name == "stem":
        return "conv1", "res_conv1_bn"
    stage, block, part = name.split("/")
    branches = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}
    here = f"{stage}_{block[5:]}_branch{branches[part]}"
    return here, f"{here}_bn"


def _with_statistics(prefix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{part}" for part in _STATISTICS)


RESNET_TORCHVISION = Naming(
    lambda name: f"{_torchvision(name)[0]}.weight",
    lambda name: _with_statistics(_torchvision(name)[1]),
    {},
    False,
    ("fc.",),
)
# The classifier's names differ between copies; detectron2 passes over the bias, too.
RESNET_MSRA = Naming(
    lambda name: f"{_caffe(name)[0]}_w",
    lambda name: tuple(f"{_caffe(name)[1]}_{part}" for part in "sb"),
    {},
    False,
    ("fc1000_", "pred_", "conv1_b"),
)
TORCHVISION = Naming(
    lambda name: f"{_torchvision(name, 'backbone.body.')[0]}.weight",
    lambda name: _with_statistics(_torchvision(name, "backbone.body.")[1]),
    {
        **{f"fpn/lateral{i}": f"backbone.fpn.inner_blocks.{i}.0" for i in range(4)},
        **{f"fpn/output{i}": f"backbone.fpn.layer_blocks.{i}.0" for i in range(4)},
        "rpn/conv": "rpn.head.conv.0.0",
        "rpn/objectness": "rpn.head.cls_logits",
        "rpn/deltas": "rpn.head.bbox_pred",
        "box_head/fc1": "roi_heads.box_head.fc6",
        "box_head/fc2": "roi_heads.box_head.fc7",
        "box_head/cls": "roi_heads.box_predictor.cls_score",
        "box_head/box": "roi_heads.box_predictor.bbox_pred",
    },
    True,
    (),
)
DETECTRON2 = Naming(
    lambda name: f"{_detectron2(name)}.weight",
    lambda name: _with_statistics(f"{_detectron2(name)}.norm"),
    {
        **{f"fpn/lateral{i}": f"backbone.fpn_lateral{i + 2}" for i in range(4)},
        **{f"fpn/output{i}": f"backbone.fpn_output{i + 2}" for i in range(4)},
        "rpn/conv": "proposal_generator.rpn_head.conv",
        "rpn/objectness": "proposal_generator.rpn_head.objectness_logits",
        "rpn/deltas": "proposal_generator.rpn_head.anchor_deltas",
        "box_head/fc1": "roi_heads.box_head.fc1",
        "box_head/fc2": "roi_heads.box_head.fc2",
        "box_head/cls": "roi_heads.box_predictor.cls_score",
        "box_head/box": "roi_heads.box_predictor.bbox_pred",
    },
    False,
    ("proposal_generator.anchor_generator.", "pixel_mean", "pixel_std"),
)


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
        return self._tensors[name]

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor that must have so many dimensions."""
        if name not in self._tensors:
            raise BadInput(self._path, f"has no tensor {name}", HINT)
        found = np.shape(numbers(self._tensors[name], name, self._path))
        if len(found) != dimensions:
            problem = f"{name} has the shape {found}, not {dimensions} dimensions"
            raise BadInput(self._path, problem, HINT)
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
            raise BadInput(self._path, problem, HINT)


def numbers(value: object, name: str, path: str | Path) -> np.ndarray:
    """`value`, which must be an array of numbers: a pickle may hold anything under a name."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise BadInput(path, f"{name} is no array of numbers", HINT)
    return value
