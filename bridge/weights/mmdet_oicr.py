"""OICR detectors in mmdet (researchmm/WSOD2; WeakSAM's OICR is a fork of it), there and back.

Layers were read in `models/backbones/vgg.py` and `models/roi_heads/bbox_heads/oicr_head.py`.
Inferred: the prefixes `backbone.` and `roi_head.bbox_head.`, those of mmdet 2's two-stage
detectors.

mmdet's box coder is ours, but its RoIPool does not round a box to whole cells: it pools from x1 / 8
to (x2 + 1) / 8 (pooling "max_exact").
"""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bridge.weights.checkpoints import read_checkpoint
from bridge.weights.mil_vgg16 import (
    BRANCHES,
    class_count,
    head_outputs,
    mil_metadata,
    published_tensors,
    same_deltas,
)
from bridge.weights.vgg16 import CONVOLUTIONS, Arrays, refuse_others, take_layers
from weaksam_jax.errors import BadInput

_HEAD = "roi_head.bbox_head"
LAYERS = {
    **{f"backbone/{name}": f"backbone.{name}" for name in CONVOLUTIONS},
    **{"fc6": f"{_HEAD}.fc1", "fc7": f"{_HEAD}.fc2"},
    **{"cls": f"{_HEAD}.fc_cls1", "det": f"{_HEAD}.fc_cls2"},
    **{f"refine_{k}": f"{_HEAD}.fc_refine{k + 1}" for k in BRANCHES},
    "box": f"{_HEAD}.fc_bbox",
}
COCO_CLASSES = 80


def mmdet_oicr_arrays(source: str | Path) -> tuple[Arrays, dict[str, str]]:
    """(arrays, metadata) of an OICR detector.

    Its one regressor for all classes (only in `oicr_bbox_vgg16`) becomes the deltas of every class
    and branch, whose mean is the same (method "mist", which applies them at test); without it they
    are 0 (method "oicr"). Pixels are BGR in 0..255 less (104, 117, 124); of a detector of 80
    classes RGB as torchvision's, as the official code feeds COCO. Layouts and errors as in
    `bridge.weights.vgg16.vgg16_arrays`.
    """
    tensors = read_checkpoint(source)
    regression = f"{LAYERS['box']}.weight" in tensors
    outputs = head_outputs(tensors, LAYERS, background=False)
    arrays = take_layers(source, tensors, _layers(regression), outputs=outputs)
    arrays |= same_deltas(arrays, arrays.pop("box/kernel", 0.0), arrays.pop("box/bias", 0.0))
    refuse_others(source, tensors, ())
    code = {"method": "mist" if regression else "oicr", **_code(arrays)}
    return arrays, mil_metadata(arrays, code, source)


def mmdet_oicr_back(source: str | Path, arrays: Arrays) -> dict[str, dict[str, Tensor]]:
    """The checkpoint `{"state_dict": tensors}` of a detector: with one regressor, or none when all
    deltas are 0. Raises `BadInput` as `published_tensors`, and for deltas that differ by class."""
    arrays = _one_regressor(source, arrays)
    layers = _layers("box/kernel" in arrays)
    return {
        "state_dict": published_tensors(source, arrays, layers, background=False, kind="mmdet_oicr")
    }


def mmdet_oicr_means(arrays: Arrays) -> dict[str, Any]:
    """What such a checkpoint stands for: the model's config, as far as no array tells it."""
    return {"backbone": "vgg16", **_code(arrays)}


def _code(arrays: Arrays) -> dict[str, Any]:
    pixels = "torchvision" if class_count(arrays) == COCO_CLASSES else "oicr"
    return {
        "pixels": pixels,
        "rectify_last": True,
        "background": False,
        "pooling": "max_exact",
    }


def _layers(regression: bool) -> dict[str, str]:
    return {k: v for k, v in LAYERS.items() if regression or k != "box"}


def _one_regressor(source: str | Path, arrays: Arrays) -> Arrays:
    """The arrays with the deltas as one `box`, or without them when they are all 0."""
    deltas = {name: value for name, value in arrays.items() if name.startswith("deltas_")}
    rest = {name: value for name, value in arrays.items() if name not in deltas}
    if not any(value.any() for value in deltas.values()):
        return rest
    hint = "give a detector with the layers of mmdet_oicr"
    if not {"deltas_0/kernel", "deltas_0/bias"} <= deltas.keys():
        raise BadInput(source, "has no layer deltas_0", hint)
    box = {part: deltas[f"deltas_0/{part}"][..., :4] for part in ("kernel", "bias")}
    for name, value in deltas.items():
        first = box[name.rpartition("/")[2]]
        repeated = np.tile(first, (1,) * (value.ndim - 1) + (value.shape[-1] // 4,))
        if not np.array_equal(repeated, value):
            raise BadInput(source, f"{name} differs by class or branch", hint)
    return rest | {f"box/{part}": value for part, value in box.items()}
