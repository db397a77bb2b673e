"""Settings of the MIL stage, and the presets that fill them (the paper's: `wsod.recipes`)."""

from dataclasses import dataclass
from typing import Literal

from weaksam_jax.data.scales import Scale
from weaksam_jax.detectors.mil.loss import Method, Reduction
from weaksam_jax.detectors.mil.mining import OicrRule
from weaksam_jax.errors import BadInput

PUBLISHED = ("vgg16", "resnet50")  # backbones that start from ImageNet weights


@dataclass(frozen=True)
class WsodSettings:
    """Everything that decides the detector's weights and detections, but for the seed and data."""

    # Losses
    method: Method = "mist"
    """mist: several pseudo boxes a class, box regression; oicr: one, none; wsddn: no refinement
    (the image loss alone, and its scores at test)."""
    oicr_rule: OicrRule = "paper"
    """paper: the best proposal of a class; release: all from 0.9 of the best score on."""
    ignore_below: float = 0.0
    """Proposals with less IoU than this to every pseudo box take no part (PCL: 0.1)."""
    image_loss: Reduction = "mean"
    """Over the classes: mean (MIST's release) or sum (OICR's)."""
    tag_weight: float = 1.0
    """Weight of the image-level loss on the class maps beside the MIL losses."""

    # Network
    backbone: Literal["mini_cnn", "lite0", "vgg16", "resnet50"] = "mini_cnn"
    """mini_cnn: from scratch, first as a classifier of tags; lite0: frozen, its maps cached on
    disk; vgg16, resnet50: published networks that start from `init`."""
    init: str | None = None
    """A safetensors file of bridge.convert (ImageNet weights or a whole detector) or of a detector
    trained here; "scratch": fresh weights."""
    rectify_last: bool = False
    """VGG16: a ReLU behind conv5_3 too (OICR's release; MIST's has none)."""
    frozen_blocks: int = 2
    """So many first blocks of vgg16 (or of resnet50, its stem counted) keep their weights."""
    pixels: Literal["mist", "oicr", "torchvision"] = "mist"
    """Channel order, mean and deviation of the pixels that vgg16 is shown (`vgg_input`)."""
    background: bool = True
    """WSDDN's two streams have a column for the background (MIST's release)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the backbone's convolutions and of both fully connected layers; weights, scores and losses
    are float32."""
    neck: int | None = None
    """Channels of a trained 1x1 convolution on the maps."""
    pooling: Literal["align", "max", "max_exact"] = "align"
    """RoIAlign, RoIPool with Caffe's rounding, or RoIPool without (mmcv's, OICR's release)."""
    pool_size: int = 5
    """Output side of the pooling."""
    width: int = 256
    """Of both fully connected layers."""
    dropout: float = 0.3
    """Behind each of them."""
    drop_block: bool = False
    """Concrete DropBlock on the pooled features in training."""
    evidence: float = 16.0
    """Weight in the detection stream of the contrast of the detector's own class maps and of the
    proposal's quality."""
    clue_evidence: float = 0.0
    """Weight there of what the clue network's stored maps say of a proposal."""
    clue_power: float = 0.0
    """At test that multiplies its score, to this power."""

    # Data
    scales: tuple[Scale, ...] = (((160, 192), (192, 160)),)
    """Canvases (height, width) of each scale; one scale is drawn for each batch."""
    jitter: tuple[float, float] = (0.75, 1.0)
    """Range of a random further factor of the size."""
    colour: float = 0.1
    """Range of random gains of the channels."""
    lighting: float = 0.0
    """Deviation of AlexNet's lighting noise."""
    hide: float = 0.5
    """Share of hidden patches (like the three above: not with cached maps)."""
    max_proposals: int = 104
    """Most proposals of an image."""
    min_side: float = 12.0
    """Least side of a proposal in pixels of the original image."""

    # Training
    pretrain_steps: int = 1200
    """First so many steps as a classifier of tags: the stand-in for ImageNet."""
    pretrain_rate: float = 2e-3
    steps: int = 800
    batch: int = 8
    """Images a step, over all devices."""
    accumulate: int = 1
    """A device takes its share of a batch in so many turns, to need less memory."""
    rate: float = 1e-3
    optimizer: Literal["adamw", "adam_l2"] = "adamw"
    """adamw: cosine decay; adam_l2: the published one, with steps; biases learn twice as fast and
    do not decay."""
    warmup: int = 100
    warmup_from: float = 0.1
    """The rate starts at this part of `rate`."""
    milestones: tuple[int, ...] = ()
    """Steps at which the rate of adam_l2 falls by 10."""
    refine_rate: float = 1.0
    """Factor of adam_l2's rate for the refinement branches (OICR's release: 10)."""
    weight_decay: float = 1e-3
    clip: float | None = 5.0
    """Largest norm of the gradient."""
    checkpoint_every: int = 200

    # Test
    test_scales: tuple[Scale, ...] | None = None
    """Canvases of the scales visited at test [those of training]."""
    test_mirrored: bool = True
    """Every scale is visited mirrored too."""
    test_batch: int = 10
    nms: float = 0.3
    max_detections: int = 100
    """Of an image, over all classes."""
    every_class: bool = True
    """The best detection of every class is among them, however low: CorLoc and pseudo boxes ask for
    it. In the paper's code the 100 best are all there is, and AP with many classes wants that: of
    100 detections COCO's 80 classes would take 80."""


def check_init(settings: WsodSettings) -> None:
    """`BadInput` when a published backbone is to start from nothing."""
    if settings.init is None and settings.backbone in PUBLISHED:
        hint = 'set init to a file of bridge.convert, or to "scratch"'
        raise BadInput("the MIL detector", f"has no weights for {settings.backbone}", hint)


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
