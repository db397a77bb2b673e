"""DINO of mmdetection (3.x, `configs/dino`; WeakSAM's retrained DINO is one), there and back.

Names and shapes are those of docs/provenance/retraining.md, section 5. Pixels are torchvision's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, from_numpy

from bridge.weights.dino import COMMON, HEADS, Arrays, Layout, dino_arrays, dino_tensors
from bridge.weights.naming import Naming, with_statistics
from bridge.weights.r50_fpn import read_numpy
from bridge.weights.resnet50 import torchvision_prefixes


def dino_mmdet_arrays(
    source: str | Path, heads: int = HEADS, classes: Sequence[str] | None = None
) -> tuple[Arrays, dict[str, str]]:
    """(arrays, metadata) of a checkpoint; arguments and errors as `bridge.weights.dino`'s."""
    return dino_arrays(read_numpy(source), MMDET, source, heads=heads, classes=classes)


def dino_mmdet_back(source: str | Path, arrays: Arrays) -> dict[str, dict[str, Tensor]]:
    """The checkpoint `{"state_dict": tensors}` of a DINO over ResNet-50 whose neck has no bias.

    Raises `BadInput` with `source` for the arrays of another network.
    """
    tensors = dino_tensors(arrays, MMDET, source)
    return {"state_dict": {name: from_numpy(value) for name, value in tensors.items()}}


def dino_mmdet_means(arrays: Arrays) -> dict[str, Any]:
    """What such a checkpoint stands for, in mmdetection's published configurations and code: the
    model's config, as far as no array tells it."""
    del arrays
    return {**COMMON, "heads": HEADS, **MMDET.stated}


def trunk(prefix: str) -> Naming:
    """A torchvision-like ResNet-50 below a prefix."""
    return Naming(
        lambda name: f"{torchvision_prefixes(name, prefix)[0]}.weight",
        lambda name: with_statistics(torchvision_prefixes(name, prefix)[1]),
        {},
        background_first=False,
        ignored=(),
    )


def _neck(level: int, own: int, part: str) -> str:
    name = f"convs.{level}" if level < own else f"extra_convs.{level - own}"
    return f"neck.{name}.{'gn' if part == 'norm' else part}"


def _head(index: int | None, inner: int | None, layers: int) -> str:
    index = layers if index is None else index
    kind = f"cls_branches.{index}" if inner is None else f"reg_branches.{index}.{2 * inner}"
    return f"bbox_head.{kind}"


MMDET = Layout(
    prefix="backbone.",
    backbone=trunk("backbone."),
    neck=_neck,
    head=_head,
    rules=(
        (r"encoder/level_embed", r"level_embed"),
        (r"query_embed", r"query_embedding.weight"),
        (r"label_embed", r"dn_query_generator.label_embedding.weight"),
        (r"memory_(fc|norm)", r"memory_trans_\1"),
        (r"decoder/norm", r"decoder.norm"),
        (r"decoder/ref_point_head/fc(\d)", r"decoder.ref_point_head.layers.\1"),
        (r"(en|de)coder/layer(\d+)/norm(\d)", r"\1coder.layers.\2.norms.\3"),
        (r"(en|de)coder/layer(\d+)/ffn/fc0", r"\1coder.layers.\2.ffn.layers.0.0"),
        (r"(en|de)coder/layer(\d+)/ffn/fc1", r"\1coder.layers.\2.ffn.layers.1"),
        (r"decoder/layer(\d+)/self_attn/(in|out)", r"decoder.layers.\1.self_attn.attn.\2_proj"),
        (r"(en|de)coder/layer(\d+)/(self|cross)_attn/(\w+)", r"\1coder.layers.\2.\3_attn.\4"),
    ),
    stated={"neck_bias": False, "position_temperature": 20.0, "prediction_epsilon": 1e-5},
)
