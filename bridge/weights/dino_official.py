"""DINO of its authors (IDEA-Research/DINO, `models/dino`), with ResNet-50.

Names were read in `dino.py`, `deformable_transformer.py` and `backbone.py`, settings in
`config/DINO/DINO_4scale.py`. Its neck has a bias, boxes that predictions start from are kept 1e-3
away from 0 and 1 (mmdetection: 1e-5), and its label embedding has a row of no class. With shared
heads (its configuration) every decoder layer has the same one. Pixels are torchvision's.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bridge.weights.dino import HEADS, Arrays, Layout, dino_arrays
from bridge.weights.dino_mmdet import trunk
from bridge.weights.faster_rcnn_torchvision import torchvision_coco_classes
from bridge.weights.r50_fpn import read_numpy

COCO_OUTPUTS = 91  # COCO's category ids, 0 among them, which is no category


def dino_official_arrays(
    source: str | Path, heads: int = HEADS, classes: Sequence[str] | None = None
) -> tuple[Arrays, dict[str, str]]:
    """(arrays, metadata) of a checkpoint; arguments and errors as `bridge.weights.dino`'s.

    classes: None where there are 91 outputs: COCO's by their ids, those of no category "N/A".
    """
    tensors = read_numpy(source)
    if classes is None and np.shape(tensors.get("class_embed.0.bias")) == (COCO_OUTPUTS,):
        classes = ["N/A", *torchvision_coco_classes()]
    return dino_arrays(tensors, OFFICIAL, source, heads=heads, classes=classes)


def _neck(level: int, own: int, part: str) -> str:
    del own
    return f"input_proj.{level}.{('conv', 'norm').index(part)}"


def _head(index: int | None, inner: int | None, layers: int) -> str:
    del layers
    kind = "class_embed" if inner is None else "bbox_embed"
    name = f"transformer.enc_out_{kind}" if index is None else f"{kind}.{index}"
    return name if inner is None else f"{name}.layers.{inner}"


OFFICIAL = Layout(
    prefix="backbone.0.body.",
    backbone=trunk("backbone.0.body."),
    neck=_neck,
    head=_head,
    rules=(
        (r"encoder/level_embed", r"transformer.level_embed"),
        (r"query_embed", r"transformer.tgt_embed.weight"),
        (r"label_embed", r"label_enc.weight"),
        (r"memory_fc", r"transformer.enc_output"),
        (r"memory_norm", r"transformer.enc_output_norm"),
        (r"decoder/norm", r"transformer.decoder.norm"),
        (r"decoder/ref_point_head/fc(\d)", r"transformer.decoder.ref_point_head.layers.\1"),
        # its numbers: cross attention, self-attention, fully connected layers
        (r"decoder/layer(\d+)/norm0", r"transformer.decoder.layers.\1.norm2"),
        (r"decoder/layer(\d+)/norm1", r"transformer.decoder.layers.\1.norm1"),
        (r"decoder/layer(\d+)/norm2", r"transformer.decoder.layers.\1.norm3"),
        (r"encoder/layer(\d+)/norm0", r"transformer.encoder.layers.\1.norm1"),
        (r"encoder/layer(\d+)/norm1", r"transformer.encoder.layers.\1.norm2"),
        (r"(en|de)coder/layer(\d+)/ffn/fc0", r"transformer.\1coder.layers.\2.linear1"),
        (r"(en|de)coder/layer(\d+)/ffn/fc1", r"transformer.\1coder.layers.\2.linear2"),
        (
            r"decoder/layer(\d+)/self_attn/(in|out)",
            r"transformer.decoder.layers.\1.self_attn.\2_proj",
        ),
        (
            r"(en|de)coder/layer(\d+)/(self|cross)_attn/(\w+)",
            r"transformer.\1coder.layers.\2.\3_attn.\4",
        ),
    ),
    stated={"neck_bias": True, "position_temperature": 20.0, "prediction_epsilon": 1e-3},
    # the decoder holds the heads once more
    ignored=("transformer.decoder.class_embed.", "transformer.decoder.bbox_embed."),
)
