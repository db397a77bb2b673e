"""MIL detectors of wetectron (NVlabs/wetectron; WeakSAM's MIST is a fork of it), there and back.

All names were read in its `utils/checkpoint.py`, `modeling/backbone/vgg16.py`,
`modeling/detector/generalized_rcnn.py` and `modeling/roi_heads/weak_head/`; `roi_heads.model_sim`
(Sim_Net, which the fork builds and does not use) in the fork and in jinhseo/OD-WSCL. Concrete
DropBlock's network lies beside the detector in the file (`model_cdb`), acts in training alone and
is not read.

wetectron's box coder lets a box end at x2 + 1: its boxes are exactly
`decode(deltas, boxes + (0, 0, 1, 1)) - (0, 0, 1, 1)` with `weaksam_jax.boxes.decode`, so ours are
the same for deltas of 0 and otherwise up to |dx| / 10 + |exp(dw / 5) - 1| / 2 pixels of the network
input away.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.weights.checkpoints import read_checkpoint
from bridge.weights.mil_vgg16 import (
    BRANCHES,
    head_outputs,
    mil_metadata,
    published_tensors,
    same_deltas,
)
from bridge.weights.vgg16 import Arrays, numbered, refuse_others, take_layers

_CLASSIFIER, _PREDICTOR = "roi_heads.feature_extractor.classifier", "roi_heads.predictor"
LAYERS = {
    **numbered("backbone.body.features"),
    **{"fc6": f"{_CLASSIFIER}.1", "fc7": f"{_CLASSIFIER}.4"},
    **{"cls": f"{_PREDICTOR}.cls_score", "det": f"{_PREDICTOR}.det_score"},
    **{f"refine_{k}": f"{_PREDICTOR}.ref{k + 1}" for k in BRANCHES},
    **{f"deltas_{k}": f"{_PREDICTOR}.bbox_pred{k + 1}" for k in BRANCHES},
}
UNUSED = ("roi_heads.model_sim.",)
CODE = {"pixels": "mist", "rectify_last": False, "background": True, "pooling": "max"}


def wetectron_arrays(source: str | Path) -> tuple[Arrays, dict[str, str]]:
    """(arrays, metadata) of a MIST detector, or of one without box regression (its
    `OICRPredictor`), whose deltas are 0.

    Pixels are BGR in 0..255 less (102.9801, 115.9465, 122.7717). Layouts and errors as in
    `bridge.weights.vgg16.vgg16_arrays`.
    """
    tensors = read_checkpoint(source)
    regression = any(".bbox_pred" in name for name in tensors)
    layers = {k: v for k, v in LAYERS.items() if regression or not k.startswith("deltas")}
    outputs = head_outputs(tensors, LAYERS, background=True)
    arrays = take_layers(source, tensors, layers, outputs=outputs)
    if not regression:
        arrays |= same_deltas(arrays)
    refuse_others(source, tensors, UNUSED)
    code = {"method": "mist" if regression else "oicr", **CODE}
    return arrays, mil_metadata(arrays, code, source)


def wetectron_back(source: str | Path, arrays: Arrays) -> dict[str, dict[str, Tensor]]:
    """The checkpoint `{"model": tensors}` of a detector; `BadInput` as in `published_tensors`."""
    return {"model": published_tensors(source, arrays, LAYERS, background=True, kind="wetectron")}


def wetectron_means(arrays: Arrays) -> dict[str, Any]:
    """What such a checkpoint stands for: the model's config, as far as no array tells it."""
    del arrays
    return {"backbone": "vgg16", **CODE}
