"""What the published MIL detectors over VGG16 have in common (see `wetectron`, `mmdet_oicr`).

In both, class 0 of the three refinement branches is the background. All parameters of our MIL
detector are filled; where a published detector has no box regression, the deltas are 0, which
leaves proposals where they are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bridge.weights.metadata import detector_metadata
from bridge.weights.vgg16 import Arrays, Layers, put_layers, take_layers
from weaksam_jax.errors import BadInput

BRANCHES = range(3)


def head_outputs(tensors: Mapping[str, Tensor], layers: Layers, background: bool) -> dict[str, int]:
    """How many outputs each head has, from those of the first.

    background: whether the two streams have one, as the refinement branches always do.
    """
    bias = tensors.get(f"{layers['cls']}.bias")
    if bias is None:
        return {}  # the reader of layers names it
    streams = bias.numel()
    scores = streams + (not background)
    heads = {"cls": streams, "det": streams, "box": 4}
    heads |= {f"refine_{k}": scores for k in BRANCHES}
    return heads | {f"deltas_{k}": 4 * scores for k in BRANCHES}


def same_deltas(
    arrays: Arrays, kernel: np.ndarray | float = 0.0, bias: np.ndarray | float = 0.0
) -> Arrays:
    """`deltas_{0,1,2}` that are the same four for all classes."""
    width, scores = arrays["refine_0/kernel"].shape
    kernel = np.tile(np.broadcast_to(np.float32(kernel), (width, 4)), (1, scores))
    bias = np.tile(np.broadcast_to(np.float32(bias), 4), scores)
    parts = (("kernel", kernel), ("bias", bias))
    return {f"deltas_{k}/{part}": value for k in BRANCHES for part, value in parts}


def class_count(arrays: Arrays) -> int:
    """Classes without the background."""
    return arrays["refine_0/bias"].size - 1


def mil_metadata(arrays: Arrays, code: Mapping[str, Any], source: str | Path) -> dict[str, str]:
    """Metadata of such a detector: its model's config. code: the fields that the published code
    determines; sizes are the arrays'. Neither file names its classes."""
    channels = arrays["backbone/conv5_3/bias"].size
    rows, width = arrays["fc6/kernel"].shape
    model = {
        "backbone": "vgg16",
        "backbone_width": arrays["backbone/conv1_1/bias"].size,
        **code,
        "pool_size": round((rows / channels) ** 0.5),
        "fc_width": width,
        "neck": None,
        "dropout": 0.5,
        "drop_block": False,
        "evidence": 0.0,
        "class_maps": False,
    }
    return detector_metadata(
        "mil", {"model": model}, class_count(arrays), classes=None, source=source
    )


def published_tensors(
    source: str | Path, arrays: Arrays, layers: Layers, background: bool, kind: str
) -> dict[str, Tensor]:
    """The way back: a detector's arrays as tensors of those layers.

    The drop block, which acts in training alone, is left out. Raises `BadInput` with `source` when
    the kind has no place for the detector (class maps, the other kind of background).
    """
    hint = f"give a detector with the layers of {kind}"
    rest = {name: value for name, value in arrays.items() if not name.startswith("drop_block/")}
    tensors = put_layers(source, rest, layers, hint=hint)
    if rest:
        raise BadInput(source, f"has {min(rest)}, for which {kind} has no place", hint)
    outputs = head_outputs(tensors, layers, background)
    take_layers(source, dict(tensors), layers, outputs=outputs)  # checks the shapes
    return tensors
