"""Faster R-CNN R50-FPN of torchvision (`fasterrcnn_resnet50_fpn`), there and back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bridge.weights.naming import Naming, with_statistics
from bridge.weights.r50_fpn import (
    BATCH_NORM_EPSILON,
    PYRAMID,
    Arrays,
    detector_back,
    faster_rcnn_metadata,
    read_numpy,
    to_ours,
)
from bridge.weights.resnet50 import torchvision_prefixes

LIBRARY = {"backbone": "resnet50", "aligned": False, "round_anchors": True}
COCO_OUTPUTS = 91  # 90 category ids, ten of them without a category, and the background


def faster_rcnn_torchvision_arrays(
    source: str | Path,
    epsilon: float | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[Arrays, dict[str, str]]:
    """(arrays, metadata) of a torchvision state_dict; its RoIAlign is not aligned, its anchors are
    rounded to whole pixels.

    epsilon: of the batch norm, which the file does not tell. torchvision runs its published COCO
    weights, and what was trained on from them, with 0, every other detector with
    `BATCH_NORM_EPSILON`. None: 0 for the published file (91 outputs under the names of before
    0.14), else `BATCH_NORM_EPSILON`. classes: their names in the file's order, without background;
    None: COCO's (with gaps) where there are 91 outputs. Raises `BadInput` for what does not fit.
    """
    tensors = read_numpy(source)
    coco = np.shape(tensors.get("roi_heads.box_predictor.cls_score.bias")) == (COCO_OUTPUTS,)
    if epsilon is None:
        published = coco and "rpn.head.conv.weight" in tensors
        epsilon = 0.0 if published else BATCH_NORM_EPSILON
    if classes is None and coco:
        classes = torchvision_coco_classes()
    arrays = to_ours(_new_names(tensors), TORCHVISION, source, epsilon=epsilon)
    return arrays, faster_rcnn_metadata(arrays, LIBRARY, classes, source=source)


def faster_rcnn_torchvision_back(
    source: str | Path, arrays: Mapping[str, np.ndarray]
) -> dict[str, Tensor]:
    """The state_dict of such a detector, for a batch norm with `BATCH_NORM_EPSILON`.

    Raises `BadInput` with `source` when the arrays are of another network.
    """
    return detector_back(source, arrays, TORCHVISION)


def faster_rcnn_torchvision_means(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What such a checkpoint stands for: the model's config, as far as no array tells it."""
    del arrays
    return {**LIBRARY, **PYRAMID}


def torchvision_coco_classes() -> list[str]:
    """Names of the 90 classes of torchvision's COCO detectors; gaps in COCO's ids are "N/A"."""
    import bridge.runtime.torchvision_ops  # noqa: F401

    # isort: split
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]


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


TORCHVISION = Naming(
    lambda name: f"{torchvision_prefixes(name, 'backbone.body.')[0]}.weight",
    lambda name: with_statistics(torchvision_prefixes(name, "backbone.body.")[1]),
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
    background_first=True,
    ignored=(),
)
