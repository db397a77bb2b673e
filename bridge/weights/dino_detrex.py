"""DINO of detrex (IDEA-Research/detrex, `projects/dino`), with ResNet-50.

Names were read in its `modeling/dino.py`, `modeling/dino_transformer.py` and detrex's layers,
settings in `configs/models/dino_r50.py`: the neck has a bias, boxes that predictions start from are
kept 1e-3 away from 0 and 1, and the codes of tokens are DETR's (places less half a cell, waves of
up to 10,000). Pixels are torchvision's.
"""

from collections.abc import Sequence
from pathlib import Path

from bridge.weights.dino import HEADS, Arrays, Layout, dino_arrays
from bridge.weights.naming import Naming, with_statistics
from bridge.weights.r50_fpn import read_numpy


def dino_detrex_arrays(
    source: str | Path, heads: int = HEADS, classes: Sequence[str] | None = None
) -> tuple[Arrays, dict[str, str]]:
    """(arrays, metadata) of a checkpoint; arguments and errors as `bridge.weights.dino`'s."""
    return dino_arrays(read_numpy(source), DETREX, source, heads=heads, classes=classes)


def _conv(name: str) -> str:
    """detectron2's prefix of a convolution of the backbone."""
    inner = "stem.conv1" if name == "stem" else name.replace("block", "").replace("/", ".")
    return f"backbone.{inner}"


def _neck(level: int, own: int, part: str) -> str:
    name = f"convs.{level}" if level < own else f"extra_convs.{level - own}"
    return f"neck.{name}.{part}"


def _head(index: int | None, inner: int | None, layers: int) -> str:
    index = layers if index is None else index
    return f"class_embed.{index}" if inner is None else f"bbox_embed.{index}.layers.{inner}"


DETREX = Layout(
    prefix="backbone.",
    backbone=Naming(
        lambda name: f"{_conv(name)}.weight",
        lambda name: with_statistics(f"{_conv(name)}.norm"),
        {},
        background_first=False,
        ignored=(),
    ),
    neck=_neck,
    head=_head,
    rules=(
        (r"encoder/level_embed", r"transformer.level_embeds"),
        (r"query_embed", r"transformer.tgt_embed.weight"),
        (r"label_embed", r"label_enc.weight"),
        (r"memory_fc", r"transformer.enc_output"),
        (r"memory_norm", r"transformer.enc_output_norm"),
        (r"decoder/norm", r"transformer.decoder.norm"),
        (r"decoder/ref_point_head/fc(\d)", r"transformer.decoder.ref_point_head.layers.\1"),
        (r"(en|de)coder/layer(\d+)/norm(\d)", r"transformer.\1coder.layers.\2.norms.\3"),
        (r"(en|de)coder/layer(\d+)/ffn/fc0", r"transformer.\1coder.layers.\2.ffns.0.layers.0.0"),
        (r"(en|de)coder/layer(\d+)/ffn/fc1", r"transformer.\1coder.layers.\2.ffns.0.layers.1"),
        (
            r"decoder/layer(\d+)/self_attn/(in|out)",
            r"transformer.decoder.layers.\1.attentions.0.attn.\2_proj",
        ),
        (r"encoder/layer(\d+)/self_attn/(\w+)", r"transformer.encoder.layers.\1.attentions.0.\2"),
        (r"decoder/layer(\d+)/cross_attn/(\w+)", r"transformer.decoder.layers.\1.attentions.1.\2"),
    ),
    stated={
        "neck_bias": True,
        "position_temperature": 10_000.0,
        "position_offset": -0.5,
        "prediction_epsilon": 1e-3,
    },
    # the decoder holds the heads once more
    ignored=("transformer.decoder.class_embed.", "transformer.decoder.bbox_embed."),
)
