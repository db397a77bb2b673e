"""ImageNet weights of ResNet-50: torchvision's, and MSRA's as detectron2 has them.

The parameters are those of `weaksam_jax.backbones.resnet.ResNet50`; MSRA's network has its strides
in the 1 x 1 convolutions and was trained on other pixels, so it is a backbone of its own.
"""

from pathlib import Path

from bridge.weights.naming import Naming, with_statistics
from bridge.weights.r50_fpn import Arrays, read_numpy, read_pkl, to_ours


def resnet50_arrays(source: str | Path) -> tuple[Arrays, dict[str, str]]:
    """(arrays, metadata) of torchvision's `resnet50-*.pth`; `BadInput` for what does not fit."""
    arrays = to_ours(read_numpy(source), RESNET_TORCHVISION, source)
    return arrays, {"backbone": "resnet50"}


def resnet50_msra_arrays(source: str | Path) -> tuple[Arrays, dict[str, str]]:
    """(arrays, metadata) of MSRA's Caffe2 `R-50.pkl`; `BadInput` for what does not fit."""
    blobs = read_pkl(source, "blobs")
    tensors = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
    return to_ours(tensors, RESNET_MSRA, source), {"backbone": "resnet50_msra"}


def torchvision_prefixes(name: str, root: str = "") -> tuple[str, str]:
    """torchvision's prefixes of a convolution and its norm."""
    if name == "stem":
        return f"{root}conv1", f"{root}bn1"
    stage, block, part = name.split("/")
    here = f"{root}layer{int(stage[3:]) - 1}.{block[5:]}"
    if part == "shortcut":
        return f"{here}.downsample.0", f"{here}.downsample.1"
    return f"{here}.{part}", f"{here}.{part.replace('conv', 'bn')}"


def _caffe(name: str) -> tuple[str, str]:
    """Caffe2's prefixes of a convolution and its norm in MSRA's R-50.pkl."""
    if name == "stem":
        return "conv1", "res_conv1_bn"
    stage, block, part = name.split("/")
    branches = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}
    here = f"{stage}_{block[5:]}_branch{branches[part]}"
    return here, f"{here}_bn"


RESNET_TORCHVISION = Naming(
    lambda name: f"{torchvision_prefixes(name)[0]}.weight",
    lambda name: with_statistics(torchvision_prefixes(name)[1]),
    {},
    background_first=False,
    ignored=("fc.",),
)
# The classifier's names differ between copies; detectron2 passes over the bias, too.
RESNET_MSRA = Naming(
    lambda name: f"{_caffe(name)[0]}_w",
    lambda name: tuple(f"{_caffe(name)[1]}_{part}" for part in "sb"),
    {},
    background_first=False,
    ignored=("fc1000_", "pred_", "conv1_b"),
)
