"""A narrow Faster R-CNN of ours with random weights, and torchvision's old names."""

from dataclasses import replace

import numpy as np

from weaksam_jax.detectors.faster_rcnn import FasterRcnn, FasterRcnnConfig
from weaksam_jax.detectors.faster_rcnn.recipes import r50_fpn
from weaksam_jax.engine.weights import flatten

WIDTH, CHANNELS, CLASSES, HIDDEN = 2, 3, 4, 5


def small_arrays(classes=CLASSES):
    """A detector of ours with random weights, names joined by "/"."""
    model = replace(r50_fpn(), backbone_width=WIDTH, channels=CHANNELS, fc_width=HIDDEN)
    detector = FasterRcnn(FasterRcnnConfig(model=model), classes)
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
        for name, x in flatten(detector.shapes()).items()
    }
    return detector, arrays


def old_names(tensors):
    """torchvision's names of before 0.14."""
    return {
        name.replace("rpn.head.conv.0.0", "rpn.head.conv")
        .replace(".0.weight", ".weight" if "_blocks" in name else ".0.weight")
        .replace(".0.bias", ".bias" if "_blocks" in name else ".0.bias"): value
        for name, value in tensors.items()
    }
