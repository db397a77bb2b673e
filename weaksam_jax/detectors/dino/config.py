"""Config of DINO with query drop. The paper's are in `weaksam_jax.detectors.dino.recipes`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from weaksam_jax.backbones import BACKBONES, unknown_backbone
from weaksam_jax.data.augment import AugmentConfig
from weaksam_jax.data.scales import Scales, misfit_memory, misfit_scales
from weaksam_jax.detectors.dino.loss_config import LossConfig
from weaksam_jax.engine.optimizer import OptimConfig
from weaksam_jax.engine.precision import Precision
from weaksam_jax.ranges import (
    FILLED,
    RISING,
    Batch,
    Count,
    Fault,
    Layers,
    Power,
    Scaling,
    Settings,
    Share,
    Side,
    Width,
    above,
    between,
)

# Fields of `ModelConfig` that the arrays of a file do not tell and that its weights depend on.
STATED = ("backbone", "heads", "encoder", "position_temperature", "position_offset")
STATED += ("prediction_epsilon",)


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The network (`DinoNetwork`)."""

    backbone: str = "mini_cnn"
    """mini_cnn, lite0, resnet50 (torchvision's weights and pixels) or resnet50_msra."""
    backbone_width: Width | None = None
    """Channels of its first layer [the backbone's own]."""
    strides: Annotated[tuple[Side, ...], FILLED, RISING] = (8, 16, 32, 64)
    """Of the levels: the backbone's last ones, then further ones, each half the one before."""
    channels: Width = 64
    """Of tokens and queries."""
    heads: Width = 8
    """Of every attention; they share the channels."""
    points: Width = 4
    """That a head reads of each level."""
    ffn_width: Width = 256
    """Of the fully connected layers."""
    encoder: Literal["deformable", "pyramid"] = "deformable"
    """deformable attention (the paper), or a plain feature pyramid where gathers are slow."""
    encoder_layers: Layers = 2
    """Of the deformable encoder."""
    decoder_layers: Layers = 2
    """Each predicts, and each is trained."""
    queries: Count = 100
    """Best tokens that the decoder refines; all where a padded size has fewer."""
    neck_groups: Width = 8
    """Of the GroupNorm between backbone and encoder."""
    neck_bias: bool = False
    """Its convolutions have a bias (the official code's weights; mmdetection's have none)."""
    position_temperature: Annotated[float, above(1, 1_000_000)] = 20.0
    """Longest wave of the tokens' position code (DETR: 10,000)."""
    position_offset: Annotated[float, between(-1, 1)] = 0.0
    """Added to the place of a token, which is counted from 1 (detrex: -0.5)."""
    prediction_epsilon: Share = 1e-5
    """Boxes that predictions start from are kept so far from 0 and 1 (the official code: 1e-3)."""
    precision: Precision = "float32"
    """Of products (`weaksam_jax.engine.precision`); bfloat16: in convolutions, fully connected
    layers and attention."""
    remat: Literal["none", "layers", "all"] = "none"
    """What is computed again for the gradient, to need less memory: nothing, the layers of encoder
    and decoder, or these and the backbone."""

    @property
    def extra_levels(self) -> int:
        """Levels beyond those of the backbone."""
        return sum(one not in BACKBONES[self.backbone].strides for one in self.strides)

    def misfits(self) -> Iterator[Fault]:
        if unknown := list(unknown_backbone(self.backbone, "pyramid")):
            yield from unknown
            return
        own = BACKBONES[self.backbone].strides
        further = [own[-1] * 2 ** (i + 1) for i in range(self.extra_levels)]
        allowed = {tuple([*own[i:], *further]) for i in range(len(own))}
        if tuple(self.strides) not in allowed:
            hint = f"give the last of {' '.join(map(str, own))}, then each twice the one before"
            yield Fault("strides", f"are not those of {self.backbone}", hint)
        divisors = {"heads": self.heads, "neck_groups": self.neck_groups, "a position code": 4}
        for name, divisor in divisors.items():
            if self.channels % divisor:
                problem = f"are {self.channels}, not a multiple of {divisor} ({name})"
                yield Fault("channels", problem, "choose others")


@dataclass(frozen=True)
class DenoisingConfig(Settings):
    """Contrastive denoising (DINO §3.3). Defaults: the official code, but for the grouping."""

    queries: Count = 100
    """So many positives per image at most, and as many negatives; an image with more objects has
    one group."""
    label_noise: Share = 0.5
    """Half of this share of the labels is replaced by a random one."""
    box_noise: Scaling = 1.0
    """Of the distance that corners are moved."""
    grouping: Literal["image", "batch"] = "image"
    """Groups for each image's own number of objects, so that those of an image do not depend on the
    others, or for the largest of the batch, filled up with empty queries (the official code)."""


@dataclass(frozen=True)
class DinoLossConfig(LossConfig):
    """Denoising, matching, weights of losses and query drop. Losses are divided by the objects of
    the images that all devices take at once (of one micro-batch each)."""

    denoising: DenoisingConfig | None = field(default_factory=DenoisingConfig)
    """null: no denoising."""


@dataclass(frozen=True)
class DinoOptimConfig(OptimConfig):
    """How DINO is optimised."""

    backbone_lr: Scaling = 1.0
    """The backbone's learning rate, as a part of lr."""


@dataclass(frozen=True)
class DataConfig(Settings):
    """Training samples."""

    scales: Scales = (((192, 192),),)
    """Padded sizes (height, width) of each scale; one scale is drawn for each batch."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class TestConfig(Settings):
    """Detection: every view gives `max_detections`; the union of several views goes through one
    class-wise NMS, a single view through none."""

    tta_scales: Scales = (((192, 192),),)
    """Padded sizes of the scales visited, the best fitting one per image."""
    tta_flip: bool = True
    """Every scale is visited mirrored too."""
    batch_size: Batch = 8
    """Images detected on at a time."""
    score_threshold: Share = 0.0
    """Detections with less score go."""
    nms: Share = 0.6
    """Of several views: detections of a class with more IoU to a better one go."""
    max_detections: Count = 100
    """Per image."""
    tag_power: Power = 0.0
    """Scores are multiplied by the clue network's probability of the class in the image, to this
    power (0: off, the paper)."""


@dataclass(frozen=True)
class DinoConfig(Settings):
    """Everything that decides the weights and detections, but for the seed and the data."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: DinoLossConfig = field(default_factory=DinoLossConfig)
    optim: DinoOptimConfig = field(default_factory=DinoOptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    test: TestConfig = field(default_factory=TestConfig)

    def misfits(self) -> Iterator[Fault]:
        """Among others query drop over a batch that a device takes in parts: only those of a part
        are ranked together, and of fewer than 10 at the 90th percentile none is ever dropped."""
        drop = self.loss.drop
        if self.optim.micro_batches > 1 and drop is not None and drop.scope == "global":
            problem = "do not go with query drop over all images of a batch"
            hint = "set model.remat to layers or all, or choose loss.drop.scope device"
            yield Fault("optim.micro_batches", problem, hint)
        yield from misfit_scales("data.scales", self.data.scales)
        yield from misfit_scales("test.tta_scales", self.test.tta_scales)
        yield from misfit_memory("optim.batch_size", self.optim.batch_size, self.data.scales)
        yield from misfit_memory("test.batch_size", self.test.batch_size, self.test.tta_scales)
