"""Config of the MIL detector; the class defaults are those of the embedded mini set.

The paper's are in `weaksam_jax.detectors.mil.recipes`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from weaksam_jax.backbones import BACKBONES, unknown_backbone
from weaksam_jax.data.augment import AugmentConfig
from weaksam_jax.data.scales import Scales, misfit_memory, misfit_scales
from weaksam_jax.detectors.mil.loss import Method, Reduction
from weaksam_jax.detectors.mil.mining import OicrRule
from weaksam_jax.detectors.mil.model import MIN_FRAME
from weaksam_jax.engine.optimizer import OptimConfig
from weaksam_jax.engine.precision import Precision
from weaksam_jax.ranges import (
    Amount,
    Batch,
    Count,
    Fault,
    Pixels,
    Positive,
    Power,
    Rate,
    Settings,
    Share,
    StepsOrNone,
    Width,
    integers,
)

# Fields of `ModelConfig` that the arrays of a file do not tell and that its weights depend on.
STATED = ("backbone", "pixels", "rectify_last", "background", "pooling")


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The network."""

    method: Method = "mist"
    """mist: several pseudo boxes per class, box regression; oicr: one, none; wsddn: no refinement
    (the image loss alone, and its scores at test)."""
    backbone: str = "mini_cnn"
    """mini_cnn: from scratch, first as a classifier of tags; lite0, vgg16, resnet50, resnet50_msra
    start from optim.init."""
    backbone_width: Width | None = None
    """Channels of its first layer [the backbone's own]."""
    pixels: Literal["mist", "oicr", "torchvision"] | None = None
    """Channel order, mean and deviation of the pixels that vgg16 is shown [the backbone's own]."""
    rectify_last: bool = False
    """vgg16: a ReLU behind conv5_3 too (OICR's official code; MIST's has none)."""
    background: bool = True
    """WSDDN's two streams have a column for the background (MIST's official code)."""
    neck: Width | None = None
    """Channels of a trained 1x1 convolution on the maps."""
    pooling: Literal["align", "max", "max_exact"] = "align"
    """RoIAlign; RoIPool with Caffe's rounding (MIST's official code) or without (mmcv, OICR's)."""
    pool_size: Annotated[int, integers(1, 64)] = 5
    """Output side of the pooling."""
    fc_width: Width = 256
    """Of both fully connected layers."""
    dropout: Rate = 0.3
    """Behind each of them."""
    drop_block: bool = False
    """Concrete DropBlock on the pooled features in training."""
    class_maps: bool = True
    """Class maps, for image-level training and `evidence`; without them the published network."""
    evidence: Amount = 16.0
    """Weight in the detection stream of the contrast of the detector's own class maps and of the
    proposal's quality."""
    fc_std: Positive | None = None
    """Standard deviation of the fresh kernels of both fully connected layers [He et al. 2015]."""
    score_std: Amount = 0.01
    """The same of the layers that score."""
    precision: Precision = "float32"
    """Of products (`weaksam_jax.engine.precision`); bfloat16: in the backbone and both fully
    connected layers, while weights, scores and losses are float32."""

    def misfits(self) -> Iterator[Fault]:
        """Among others evidence from class maps that are not there, or that RoI features of so few
        cells cannot tell from their surroundings."""
        yield from unknown_backbone(self.backbone, "single")
        if self.evidence and not (self.class_maps and self.pool_size >= MIN_FRAME):
            problem = f"needs class_maps and a pool_size of at least {MIN_FRAME}"
            yield Fault("evidence", problem, "set it to 0")


@dataclass(frozen=True)
class LossConfig(Settings):
    """The losses; `model.method` says how pseudo boxes are mined."""

    oicr_rule: OicrRule = "paper"
    """paper: the best proposal of a class; official: all from 0.9 of the best score on."""
    ignore_below: Share = 0.0
    """Proposals with less IoU than this to every pseudo box take no part (PCL: 0.1)."""
    image_loss: Reduction = "mean"
    """Over the classes: mean (MIST's official code) or sum (OICR's)."""
    tag_weight: Amount = 1.0
    """Weight of the image-level loss on the class maps beside the MIL losses."""


@dataclass(frozen=True)
class MilOptimConfig(OptimConfig):
    """How the detector is optimised, and the training as a classifier of tags before it."""

    optimizer: Literal["sgd", "adamw", "adam_l2"] = "adamw"
    """adam_l2: the published one; biases learn twice as fast and do not decay."""
    lr: Positive = 1e-3
    """Highest learning rate."""
    weight_decay: Amount = 1e-3
    """Of the weights."""
    clip: Positive | None = 5.0
    warmup_from: Share = 0.1
    final_lr: Share = 0.02
    steps: StepsOrNone = 800
    """Optimizer steps of the whole training."""
    refine_lr: Amount = 1.0
    """Factor of adam_l2's rate for the refinement branches (OICR's official code: 10)."""
    pretrain_steps: StepsOrNone = 1200
    """First so many steps as a classifier of tags: the stand-in for ImageNet."""
    pretrain_lr: Positive = 2e-3
    """Highest rate of that training."""


@dataclass(frozen=True)
class DataConfig(Settings):
    """Training samples."""

    scales: Scales = (((160, 192), (192, 160)),)
    """Padded sizes (height, width) of each scale; one scale is drawn for each batch."""
    augment: AugmentConfig = field(
        default_factory=lambda: AugmentConfig(scale=(0.75, 1.0), channel_gain=0.1, hide=0.5)
    )
    """Without crops and `colour`; with `cache_maps` mirrored images alone."""
    max_proposals: Count = 104
    """Most proposals per image."""
    min_side: Pixels = 12.0
    """Least side of a proposal in pixels of the original image."""
    clue_evidence: Amount = 0.0
    """Weight in the detection stream of what the clue network's stored maps say of a proposal."""
    cache_maps: bool = False
    """The maps of a backbone that is frozen as a whole are computed once and kept on disk."""


@dataclass(frozen=True)
class TestConfig(Settings):
    """Detection."""

    tta_scales: Scales | None = None
    """Padded sizes of the scales visited [those of training]."""
    tta_flip: bool = True
    """Every scale is visited mirrored too."""
    batch_size: Batch = 10
    """Images detected on at a time."""
    nms: Share = 0.3
    """Detections of a class with more IoU to a better one go."""
    max_detections: Count = 100
    """Per image, over all classes."""
    every_class: bool = True
    """The best detection of every class is among them, however low: CorLoc and pseudo boxes ask for
    it. In the official code the 100 best are all there is, and AP with many classes wants that: of
    100 detections COCO's 80 classes would take 80."""
    clue_power: Power = 0.0
    """What the clue network's stored maps say of a proposal multiplies its score, to this power."""


@dataclass(frozen=True)
class MilConfig(Settings):
    """Everything that decides the detector's weights and detections, but for the seed and data."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: MilOptimConfig = field(default_factory=MilOptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    test: TestConfig = field(default_factory=TestConfig)

    def misfits(self) -> Iterator[Fault]:
        if self.data.cache_maps and "*" not in (self.optim.frozen or ()):
            hint = 'set optim.frozen to ["*"], or data.cache_maps to false'
            yield Fault("data.cache_maps", "is for a backbone that is not trained", hint)
        row = BACKBONES[self.model.backbone]
        stride = row.stride * 2 ** (row.maps - 1)  # of the coarsest map, which the neck enlarges
        yield from misfit_scales("data.scales", self.data.scales, stride)
        shown = self.test.tta_scales or self.data.scales
        yield from misfit_scales("test.tta_scales", shown, stride)
        yield from misfit_memory("optim.batch_size", self.optim.batch_size, self.data.scales)
        yield from misfit_memory("test.batch_size", self.test.batch_size, shown)


def mini() -> MilConfig:
    """The embedded mini set on two CPU cores."""
    return MilConfig()


def light() -> MilConfig:
    """Photographs on two CPU cores: frozen EfficientNet-Lite0 features and the clue network's maps.

    Without the clues the same network has CorLoc 2 to 20 (docs/experiments_log.md): what fires most
    in features that are frozen is the most telling part.
    """
    return MilConfig(
        model=ModelConfig(backbone="lite0", neck=160, fc_width=512, evidence=0.0),
        loss=LossConfig(tag_weight=0.0),
        optim=MilOptimConfig(
            frozen=("*",),
            weight_decay=1e-2,
            steps=1600,
            batch_size=4,
            checkpoint_every=400,
            pretrain_steps=0,
        ),
        data=DataConfig(
            scales=(((448, 576), (576, 448)),),
            max_proposals=256,
            clue_evidence=40.0,
            cache_maps=True,
        ),
        test=TestConfig(batch_size=4, clue_power=8.0),
    )
