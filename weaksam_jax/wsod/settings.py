"""Settings of the MIL stage, and the presets that fill them."""

from dataclasses import dataclass
from typing import Literal

from weaksam_jax.wsod.samples import Scale


@dataclass(frozen=True)
class WsodSettings:
    """Everything that decides the detector's weights and detections, but for the seed and data.

    method: "mist" (several pseudo boxes a class, box regression) or "oicr" (one, none). backbone:
    "mini_cnn" is trained from scratch, first `pretrain_steps` as a classifier of tags; "lite0" is
    frozen and its maps are cached on disk; "vgg16" is the published network (with width 4096,
    dropout 0.5, pooling "max", pool_size 7, and 0 for evidence, pretrain_steps and tag_weight) and
    starts from `init`. init: a safetensors file of `bridge.convert`, with ImageNet weights or a
    whole detector, or of a detector trained here; "scratch": fresh weights. Of "vgg16" alone:
    rectify_last and frozen_blocks (see `Vgg16`), pixels (see `vgg_input`). background: see
    `MilDetector`. dtype: of the convolutions of "vgg16" and of both fully connected layers. neck:
    channels of a trained 1x1 convolution on the maps, or None. pooling: "align" or "max";
    pool_size: its output side. evidence: weight in the detection stream of the contrast of the
    detector's own class maps (`class_evidence`) and of the proposal's quality; clue_evidence:
    weight of what the clue network's stored maps say of it (`weaksam_jax.clue_evidence`), which at
    test multiplies its score, to the power of clue_power. scales: canvases (height, width) of each
    scale, drawn for each batch in training and all visited, plain and mirrored, at test. jitter:
    range of a random further factor; colour: of random gains; hide: share of hidden patches (none
    of the three with cached maps). max_proposals: padded number N. min_side: least side of a
    proposal in original pixels. tag_weight: weight of the image-level loss on the class maps beside
    the MIL losses. nms, max_detections: at test.
    """

    method: Literal["mist", "oicr"] = "mist"
    backbone: Literal["mini_cnn", "lite0", "vgg16"] = "mini_cnn"
    init: str | None = None
    rectify_last: bool = False
    frozen_blocks: int = 2
    pixels: Literal["mist", "oicr", "torchvision"] = "mist"
    background: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    neck: int | None = None
    pooling: Literal["align", "max"] = "align"
    pool_size: int = 5
    width: int = 256
    dropout: float = 0.3
    evidence: float = 16.0
    clue_evidence: float = 0.0
    clue_power: float = 0.0
    scales: tuple[Scale, ...] = (((160, 192), (192, 160)),)
    jitter: tuple[float, float] = (0.75, 1.0)
    colour: float = 0.1
    hide: float = 0.5
    max_proposals: int = 104
    min_side: float = 12.0
    pretrain_steps: int = 1200
    pretrain_rate: float = 2e-3
    steps: int = 800
    batch: int = 8
    rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 1e-3
    clip: float = 5.0
    tag_weight: float = 1.0
    checkpoint_every: int = 200
    test_batch: int = 10
    nms: float = 0.3
    max_detections: int = 100


def mini() -> WsodSettings:
    """The embedded mini set on two CPU cores."""
    return WsodSettings()


def light() -> WsodSettings:
    """Photographs on two CPU cores: frozen EfficientNet-Lite0 features and the clue network's maps.

    Without the clues the same network has CorLoc 2 to 20 (docs/results.md): what fires most in
    features that are frozen is the most telling part.
    """
    return WsodSettings(
        backbone="lite0",
        neck=160,
        width=512,
        evidence=0.0,
        clue_evidence=40.0,
        clue_power=8.0,
        scales=(((448, 576), (576, 448)),),
        max_proposals=256,
        min_side=12.0,
        pretrain_steps=0,
        steps=1600,
        batch=4,
        weight_decay=1e-2,
        tag_weight=0.0,
        checkpoint_every=400,
        test_batch=4,
    )
