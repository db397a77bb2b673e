"""Random arrays of a narrow Faster R-CNN of ours, and torchvision's old names."""

import flax.traverse_util
import numpy as np

from weaksam_jax.detectors.faster_rcnn.config import FasterRcnnConfig, ModelConfig
from weaksam_jax.detectors.faster_rcnn.detector import FasterRcnn

WIDTH, CHANNELS, CLASSES, HIDDEN = 2, 3, 4, 5


def small_arrays(classes=CLASSES):
    """Names joined by "/" -> float32 arrays, of an R50-FPN of `WIDTH`, `CHANNELS`, `HIDDEN`."""
    model = ModelConfig(
        backbone="resnet50",
        backbone_width=WIDTH,
        strides=(4, 8, 16, 32, 64),
        anchor_sizes=((32,), (64,), (128,), (256,), (512,)),
        channels=CHANNELS,
        extra_levels=1,
        fc_width=HIDDEN,
    )
    shapes = FasterRcnn(FasterRcnnConfig(model=model), classes).shapes()
    rng = np.random.default_rng(0)
    flat = flax.traverse_util.flatten_dict(shapes, sep="/")
    return {name: rng.uniform(0.5, 1.5, one.shape).astype(np.float32) for name, one in flat.items()}


def old_names(tensors):
    """torchvision's names of before 0.14."""
    return {
        name.replace("rpn.head.conv.0.0", "rpn.head.conv")
        .replace(".0.weight", ".weight" if "_blocks" in name else ".0.weight")
        .replace(".0.bias", ".bias" if "_blocks" in name else ".0.bias"): value
        for name, value in tensors.items()
    }
