"""Faster R-CNN R50-FPN of detectron2 from MSRA's weights, there and back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bridge.weights.naming import Naming, numbers, with_statistics
from bridge.weights.r50_fpn import (
    PYRAMID,
    Arrays,
    detector_back,
    faster_rcnn_metadata,
    read_numpy,
    read_pkl,
    to_ours,
)
from weaksam_jax.data.pixel_statistics import MSRA_MEAN, MSRA_STD
from weaksam_jax.errors import BadInput

LIBRARY = {"backbone": "resnet50_msra", "aligned": True, "round_anchors": False}


def faster_rcnn_detectron2_arrays(
    source: str | Path, classes: Sequence[str] | None = None
) -> tuple[Arrays, dict[str, str]]:
    """(arrays, metadata) of a detectron2 checkpoint: `.pkl` of the model zoo, or `.pth` of a
    training run, such as WeakSAM's retrained ones.

    classes: their names in the file's order. Raises `BadInput` for what does not fit, also when
    the file says that its pixels are not MSRA's.
    """
    pickled = Path(source).suffix == ".pkl"
    tensors = read_pkl(source, "model") if pickled else read_numpy(source)
    _check_pixels(tensors, source)
    arrays = to_ours(tensors, DETECTRON2, source)
    return arrays, faster_rcnn_metadata(arrays, LIBRARY, classes, source=source)


def faster_rcnn_detectron2_back(
    source: str | Path, arrays: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Tensor]]:
    """The checkpoint `{"model": tensors}` of such a detector.

    Raises `BadInput` with `source` when the arrays are of another network.
    """
    return {"model": detector_back(source, arrays, DETECTRON2)}


def faster_rcnn_detectron2_means(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What such a checkpoint stands for: the model's config, as far as no array tells it."""
    del arrays
    return {**LIBRARY, **PYRAMID}


def _check_pixels(tensors: Mapping[str, np.ndarray], source: str | Path) -> None:
    for name, expected in (("pixel_mean", MSRA_MEAN), ("pixel_std", MSRA_STD)):
        found = np.ravel(numbers(tensors.get(name, np.asarray(expected)), name, source))
        if found.shape != (3,) or np.abs(found - expected).max() > 0.01:
            problem = f"was trained with {name} {found.tolist()}, not {list(expected)}"
            raise BadInput(source, problem, "give a model that starts from MSRA's R-50.pkl")


def _detectron2(name: str) -> str:
    """detectron2's prefix of a convolution."""
    here = "stem.conv1" if name == "stem" else name.replace("block", "").replace("/", ".")
    return f"backbone.bottom_up.{here}"


DETECTRON2 = Naming(
    lambda name: f"{_detectron2(name)}.weight",
    lambda name: with_statistics(f"{_detectron2(name)}.norm"),
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
    background_first=False,
    ignored=("proposal_generator.anchor_generator.", "pixel_mean", "pixel_std"),
)
