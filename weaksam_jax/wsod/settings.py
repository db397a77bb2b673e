"""Settings of the MIL stage, and the presets that fill them."""

from dataclasses import dataclass
from typing import Literal

from weaksam_jax.losses.mil import Method, Reduction
from weaksam_jax.losses.mining import OicrRule
from weaksam_jax.wsod.views import Scale


@dataclass(frozen=True)
class WsodSettings:
    """Everything that decides the detector's weights and detections, but for the seed and data.

    method: "mist" (several pseudo boxes a class, box regression), "oicr" (one, none) or "wsddn"
    (no refinement: the image loss alone, and its scores at test). oicr_rule, ignore_below,
    image_loss (its `reduction`): see `weaksam_jax.losses.mil.mil_loss`. drop_block: Concrete
    DropBlock on the pooled features in training (`weaksam_jax.models.drop_block`). backbone:
    "mini_cnn" is trained from scratch, first `pretrain_steps` as a classifier of tags; "lite0" is
    frozen and its maps are cached on disk. neck: channels of a trained 1x1 convolution on the maps,
    or None. pooling: "align" or "max"; pool_size: its output side. evidence: weight in the
    detection stream of the contrast of the detector's own class maps (`class_evidence`) and of the
    proposal's quality; clue_evidence: weight of what the clue network's stored maps say of it
    (`clue_evidence.py`), which at test multiplies its score, to the power of clue_power.
    scales: canvases (height, width) of each scale (`wsod.views`), drawn for each batch in training.
    jitter: range of a random further factor; colour: of random gains; lighting: deviation of
    AlexNet's lighting noise; hide: share of hidden patches (none of the four with cached maps).
    test_scales: those visited at test, plain and (with `test_mirrored`) mirrored; None: `scales`.
    max_proposals: most proposals of an image (`MilSamples`). min_side: least side of a proposal in
    original pixels. batch: images a step, over all devices; a device takes its share in `accumulate`
    turns. tag_weight: weight of the image-level loss on the class maps beside the MIL
    losses. optimizer: "adamw" with cosine decay, or the published "adam_l2", whose rate starts at
    `warmup_from` times `rate`, falls by 10 at `milestones` (steps), is twice as high for biases,
    which do not decay, and `refine_rate` times as high for the refinement branches. clip: largest
    norm of the gradient, or None. nms, max_detections: at test; every_class: the best detection of
    every class is among them, however low (CorLoc and pseudo boxes ask for it; in the paper's code
    the 100 best are all there is, and AP with many classes wants that: of 100 detections COCO's 80
    classes would take 80).
    """

    method: Method = "mist"
    oicr_rule: OicrRule = "paper"
    ignore_below: float = 0.0
    image_loss: Reduction = "mean"
    drop_block: bool = False
    backbone: Literal["mini_cnn", "lite0"] = "mini_cnn"
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
    lighting: float = 0.0
    hide: float = 0.5
    test_scales: tuple[Scale, ...] | None = None
    test_mirrored: bool = True
    max_proposals: int = 104
    min_side: float = 12.0
    pretrain_steps: int = 1200
    pretrain_rate: float = 2e-3
    steps: int = 800
    batch: int = 8
    accumulate: int = 1
    rate: float = 1e-3
    warmup: int = 100
    optimizer: Literal["adamw", "adam_l2"] = "adamw"
    warmup_from: float = 0.1
    milestones: tuple[int, ...] = ()
    refine_rate: float = 1.0
    weight_decay: float = 1e-3
    clip: float | None = 5.0
    tag_weight: float = 1.0
    checkpoint_every: int = 200
    test_batch: int = 10
    nms: float = 0.3
    max_detections: int = 100
    every_class: bool = True


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
