"""A narrow Faster R-CNN of ours with random weights, and torchvision's old names."""

import jax
import numpy as np

from weaksam_jax.backbones.resnet import ResNet50
from weaksam_jax.detectors.faster_rcnn.model import FasterRCNN

WIDTH, CHANNELS, CLASSES, HIDDEN = 2, 3, 4, 5


def small_arrays(classes=CLASSES):
    """A detector of ours with random weights, names joined by "/"."""
    model = FasterRCNN(ResNet50(WIDTH), classes, channels=CHANNELS, fc_width=HIDDEN)
    inputs = np.zeros((1, 64, 64, 3), np.float32), np.zeros((1, 1, 4), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    flat = jax.tree_util.tree_leaves_with_path(shapes)
    arrays = {
        "/".join(entry.key for entry in path): rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
        for path, x in flat
    }
    return model, arrays


def old_names(tensors):
    """torchvision's names of before 0.14."""
    return {
        name.replace("rpn.head.conv.0.0", "rpn.head.conv")
        .replace(".0.weight", ".weight" if "_blocks" in name else ".0.weight")
        .replace(".0.bias", ".bias" if "_blocks" in name else ".0.bias"): value
        for name, value in tensors.items()
    }
