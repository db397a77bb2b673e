"""Settings of the retrained detector, and the presets that fill them."""

from dataclasses import dataclass, field
from typing import Literal

from weaksam_jax.data.pseudo_boxes import Augmentation
from weaksam_jax.data.scales import Scale
from weaksam_jax.detectors.faster_rcnn.loss import DetectionSettings, DropSettings


@dataclass(frozen=True)
class RetrainSettings:
    """Everything that decides the retrained weights and detections, but for the seed and the data.

    Detector: see `FasterRCNN`. resnet50: torchvision's weights and pixels, resnet50_msra: Caffe's.
    init: a safetensors file of `bridge.convert` with ImageNet weights of a ResNet. frozen: names of
    backbone modules that keep their weights (the norms of a ResNet always do).
    dtype: what a ResNet, the pyramid and the heads compute in.
    Optimizer: SGD with momentum 0.9 (or AdamW), linear warm-up, x0.1 at `milestones` (steps) or
    cosine to 0 when there are none; clip: largest norm of the gradient (None: no clipping). batch:
    images a step, over all devices; a device takes its share in `accumulate` turns, and the RoIs
    that divide the losses are then counted turn by turn (equal where every image fills its
    `roi_batch`; refused with the drop's "n_kept"). drop: None switches RoI drop off. Test: views
    (canvas choices, the best fitting one per image) x {plain, mirrored}, each gives
    `max_detections`; their union goes through one class-wise NMS.
    tag_power: scores are multiplied by the clue network's probability of the class in the image, to
    this power (0: off, the paper).
    """

    backbone: Literal["mini_cnn", "lite0", "resnet50", "resnet50_msra"] = "mini_cnn"
    init: str | None = None
    frozen: tuple[str, ...] = ()
    strides: tuple[int, ...] = (8, 16, 32)
    anchor_sizes: tuple[tuple[float, ...], ...] = ((32,), (56,), (96,))
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    channels: int = 64
    extra_levels: int = 0
    fc_width: int = 256
    canonical_size: float = 96.0
    canonical_level: int = 1
    aligned: bool = True
    round_anchors: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    drop: DropSettings | None = field(default_factory=DropSettings)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02
    weight_decay: float = 1e-4
    clip: float | None = None
    warmup: int = 100
    milestones: tuple[int, ...] = ()
    steps: int = 1000
    batch: int = 8
    accumulate: int = 1
    scales: tuple[Scale, ...] = (((192, 192),),)
    augmentation: Augmentation = field(default_factory=Augmentation)
    checkpoint_every: int = 200
    views: tuple[Scale, ...] = (((192, 192),),)
    mirrored: bool = True
    test_batch: int = 8
    test_pre_nms: int = 300
    test_post_nms: int = 100
    score_threshold: float = 0.05
    nms: float = 0.5
    max_detections: int = 100
    tag_power: float = 0.0


def mini() -> RetrainSettings:
    """The embedded mini set on 2 CPU cores, from the MIL detector's backbone.

    tau_reg is not the paper's 1.0, which is meant for a pre-trained R50: here it dropped every
    foreground RoI from its first step on, and the detector ended at AP50 3 instead of 54.
    """
    return RetrainSettings(
        detection=DetectionSettings(rpn_batch=64, pre_nms=200, post_nms=100, roi_batch=64),
        drop=DropSettings(start=600, tau_reg=6.0),
        scales=(((160, 160),),),
        augmentation=Augmentation(scale=(0.7, 1.4), colour=0.2),
        optimizer="adamw",
        learning_rate=1e-3,
        clip=5.0,
        steps=1000,
        score_threshold=0.01,
    )


def light() -> RetrainSettings:
    """Photographs on 2 CPU cores: EfficientNet-Lite0, only its blocks at stride 32 trained.

    tau_reg as in `mini`: the mean weighted L1 of a foreground RoI is still 3 after 340 steps.
    tag_power: a few thousand steps on pseudo boxes teach the classes of an image less well than the
    clue network knows them (tag mAP 86 on voc07-small).
    """
    canvases = ((288, 384), (384, 288))
    return RetrainSettings(
        backbone="lite0",
        frozen=("stem", *(f"block{i}" for i in range(11))),
        strides=(8, 16, 32, 64),
        anchor_sizes=((32,), (64,), (128,), (256,)),
        channels=96,
        extra_levels=1,
        canonical_size=112.0,
        detection=DetectionSettings(rpn_batch=128, pre_nms=400, post_nms=200, roi_batch=128),
        drop=DropSettings(start=1100, tau_reg=6.0),
        optimizer="adamw",
        learning_rate=5e-4,
        clip=5.0,
        steps=2000,
        batch=4,
        scales=(canvases,),
        augmentation=Augmentation(scale=(0.75, 1.25), colour=0.2),
        views=(canvases, ((384, 512), (512, 384))),
        test_batch=4,
        test_pre_nms=500,
        test_post_nms=200,
        score_threshold=0.01,
        tag_power=1.0,
    )
