"""Config of Faster R-CNN with RoI drop. The paper's are in
`weaksam_jax.detectors.faster_rcnn.recipes`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from weaksam_jax.backbones import BACKBONES, unknown_backbone
from weaksam_jax.data.augment import AugmentConfig
from weaksam_jax.data.scales import Scales, misfit_memory, misfit_scales
from weaksam_jax.engine.optimizer import OptimConfig
from weaksam_jax.engine.precision import Precision
from weaksam_jax.ranges import (
    FILLED,
    INTERVAL,
    RISING,
    Amount,
    Batch,
    Count,
    Fault,
    Filled,
    Positive,
    Power,
    Scaling,
    Settings,
    Share,
    Side,
    StepsOrNone,
    Width,
    integers,
    shown,
)

# Fields of `ModelConfig` that the arrays of a file do not tell and that its weights depend on.
STATED = ("backbone", "aligned", "round_anchors")


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The network (`FasterRcnnNetwork`)."""

    backbone: str = "mini_cnn"
    """mini_cnn, lite0, resnet50 (torchvision's weights and pixels) or resnet50_msra (Caffe's:
    detectron2's R-50.pkl)."""
    backbone_width: Width | None = None
    """Channels of its first layer [the backbone's own]."""
    strides: Annotated[tuple[Side, ...], FILLED, RISING] = (8, 16, 32)
    """Of the pyramid's levels."""
    anchor_sizes: Annotated[tuple[Filled[Positive], ...], FILLED] = ((32,), (56,), (96,))
    """Pixels, for each level the same number of sizes."""
    anchor_ratios: Filled[Scaling] = (0.5, 1.0, 2.0)
    """Height / width."""
    channels: Width = 64
    """Of the pyramid."""
    extra_levels: Annotated[int, integers(0, 4)] = 0
    """Levels beyond those of the backbone."""
    fc_width: Width = 256
    """Of both fully connected layers."""
    canonical_size: Positive = 96.0
    """A RoI of so many pixels is pooled from `canonical_level` (FPN, equation 1)."""
    canonical_level: Annotated[int, integers(0, 16)] = 1
    """0 is the finest."""
    roi_chunk: Count | None = None
    """RoIs pooled at a time [32 on a CPU, to keep its caches warm, 512 elsewhere]."""
    aligned: bool = True
    """RoIAlign with the half-pixel shift (torchvision's weights: without)."""
    round_anchors: bool = False
    """Anchors in whole pixels (torchvision's weights)."""
    precision: Precision = "float32"
    """Of products (`weaksam_jax.engine.precision`); bfloat16: in the backbone, the pyramid and the
    heads."""

    def misfits(self) -> Iterator[Fault]:
        if unknown := list(unknown_backbone(self.backbone, "pyramid")):
            yield from unknown
            return
        own = BACKBONES[self.backbone].strides
        levels = (*own, *(own[-1] * 2 ** (i + 1) for i in range(self.extra_levels)))
        if tuple(self.strides) != levels:
            hint = f"give {' '.join(map(str, levels))}, or other extra_levels"
            yield Fault("strides", f"are not those of {self.backbone}", hint)
        counts = {len(one) for one in self.anchor_sizes}
        if len(counts) > 1 or len(self.anchor_sizes) != len(levels):
            hint = f"give the same number of sizes for each of {len(levels)} levels"
            yield Fault("anchor_sizes", f"are {shown(self.anchor_sizes)}", hint)


@dataclass(frozen=True)
class DropConfig(Settings):
    """RoI drop (equations 1-2). Defaults: the paper."""

    tau_cls: Amount = 4.0
    """A RoI whose classification loss is above it is dropped."""
    tau_reg: Amount = 1.0
    """A foreground RoI whose box loss is above it is dropped."""
    start: StepsOrNone = 2000
    """The step from which RoIs are dropped."""
    rule: Literal["either", "both"] = "either"
    """either loss above its threshold (the paper), or both (the official code)."""
    background: bool = True
    """Background RoIs may be dropped, too."""
    normaliser: Literal["n_valid", "n_kept"] = "n_valid"
    """The divisor of both losses: the sampled RoIs, or those kept."""


@dataclass(frozen=True)
class LossConfig(Settings):
    """Matching and sampling of Faster R-CNN. Defaults: detectron2's R50-FPN."""

    rpn_batch: Count = 256
    """Anchors per image."""
    rpn_foreground: Share = 0.5
    """At most this share of them is foreground."""
    rpn_iou: Annotated[tuple[Share, Share], INTERVAL] = (0.3, 0.7)
    """Anchors below the first are background, from the second on (or best of an object)
    foreground."""
    pre_nms: Count = 2000
    """Proposals per level before the NMS."""
    post_nms: Count = 1000
    """Proposals per image behind it."""
    roi_batch: Count = 512
    """RoIs per image."""
    roi_foreground: Share = 0.25
    """At most this share of them is foreground."""
    roi_iou: Share = 0.5
    """Foreground RoIs have at least this IoU with an object."""
    roi_top_k: Count | None = None
    """Foreground RoIs must be among the k best of some object (the official WeakSAM code: 3)."""
    smooth_l1_beta: Amount = 0.0
    """0 is L1; torchvision has 1 / 9."""
    drop: DropConfig | None = field(default_factory=DropConfig)
    """null switches RoI drop off."""


@dataclass(frozen=True)
class DataConfig(Settings):
    """Training samples."""

    scales: Scales = (((192, 192),),)
    """Padded sizes (height, width) of each scale; one scale is drawn for each batch."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class TestConfig(Settings):
    """Detection: every view gives `max_detections`; their union goes through one class-wise NMS."""

    tta_scales: Scales = (((192, 192),),)
    """Padded sizes of the scales visited, the best fitting one per image."""
    tta_flip: bool = True
    """Every scale is visited mirrored too."""
    batch_size: Batch = 8
    """Images detected on at a time."""
    pre_nms: Count = 300
    """Proposals per level before the NMS."""
    post_nms: Count = 100
    """Proposals per image behind it."""
    score_threshold: Share = 0.05
    """Detections with less score go."""
    nms: Share = 0.5
    """Detections of a class with more IoU to a better one go."""
    max_detections: Count = 100
    """Per image."""
    tag_power: Power = 0.0
    """Scores are multiplied by the clue network's probability of the class in the image, to this
    power (0: off, the paper)."""


@dataclass(frozen=True)
class FasterRcnnConfig(Settings):
    """Everything that decides the weights and detections, but for the seed and the data."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    test: TestConfig = field(default_factory=TestConfig)

    def misfits(self) -> Iterator[Fault]:
        """Among others losses that micro-batches would change: those divided by the RoIs kept in
        one, of which one where most were dropped would weigh as much as the others."""
        drop = self.loss.drop
        if self.optim.micro_batches > 1 and drop is not None and drop.normaliser == "n_kept":
            hint = "choose loss.drop.normaliser n_valid, or 1 on more devices"
            yield Fault("optim.micro_batches", "do not go with n_kept", hint)
        yield from misfit_scales("data.scales", self.data.scales)
        yield from misfit_scales("test.tta_scales", self.test.tta_scales)
        yield from misfit_memory("optim.batch_size", self.optim.batch_size, self.data.scales)
        yield from misfit_memory("test.batch_size", self.test.batch_size, self.test.tta_scales)


def mini() -> FasterRcnnConfig:
    """The embedded mini set on 2 CPU cores, from the MIL detector's backbone.

    tau_reg is not the paper's 1.0, which is meant for a pre-trained R50: here it dropped every
    foreground RoI from its first step on, and the detector ended at AP50 3 instead of 54.
    """
    return FasterRcnnConfig(
        loss=LossConfig(
            rpn_batch=64,
            pre_nms=200,
            post_nms=100,
            roi_batch=64,
            drop=DropConfig(start=600, tau_reg=6.0),
        ),
        optim=OptimConfig(optimizer="adamw", lr=1e-3, clip=5.0),
        data=DataConfig(
            scales=(((160, 160),),), augment=AugmentConfig(scale=(0.7, 1.4), colour=0.2)
        ),
        test=TestConfig(score_threshold=0.01),
    )


def light() -> FasterRcnnConfig:
    """Photographs on 2 CPU cores: EfficientNet-Lite0, only its blocks at stride 32 trained.

    tau_reg as in `mini`: the mean weighted L1 of a foreground RoI is still 3 after 340 steps.
    tag_power: a few thousand steps on pseudo boxes teach the classes of an image less well than the
    clue network knows them (tag mAP 86 on voc07-small).
    """
    sizes = ((288, 384), (384, 288))
    return FasterRcnnConfig(
        model=ModelConfig(
            backbone="lite0",
            strides=(8, 16, 32, 64),
            anchor_sizes=((32,), (64,), (128,), (256,)),
            channels=96,
            extra_levels=1,
            canonical_size=112.0,
        ),
        loss=LossConfig(
            rpn_batch=128,
            pre_nms=400,
            post_nms=200,
            roi_batch=128,
            drop=DropConfig(start=1100, tau_reg=6.0),
        ),
        optim=OptimConfig(
            optimizer="adamw",
            lr=5e-4,
            clip=5.0,
            steps=2000,
            batch_size=4,
        ),
        data=DataConfig(scales=(sizes,), augment=AugmentConfig(scale=(0.75, 1.25), colour=0.2)),
        test=TestConfig(
            tta_scales=(sizes, ((384, 512), (512, 384))),
            batch_size=4,
            pre_nms=500,
            post_nms=200,
            score_threshold=0.01,
            tag_power=1.0,
        ),
    )
