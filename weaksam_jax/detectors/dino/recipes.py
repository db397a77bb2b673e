"""The paper's retrained DINOs as configs: R50 with four levels on VOC07, VOC12 and COCO14.

14 epochs at 9e-5 as the paper has it for all three; the official configurations agree for VOC07 (12
epochs at 8e-5 and weight decay 3e-4 on VOC12, 12 epochs at 1e-4 on COCO14; docs/provenance/
retraining.md, section 6). An epoch on VOC shows every image three times. Query drop is the paper's;
the official code has it commented out. What differs, because padded sizes are few:

- training: half of the images are shown whole with a short side of 480 to 800 pixels, half cut by a
  zoom of up to 1.25, instead of cut to 384 to 600 pixels and then resized;
- images are shrunk by area averaging (OpenCV) for mmcv's bilinear filter; objects whose side is
  below 4 pixels at the padded size are left out (there: below 32 pixels of the photograph).

And what differs by choice: groups of denoising queries are made for an image's own number of
objects, not for the largest of the batch (`loss.denoising.grouping batch`). An image with fewer
objects than others of its batch thus has more groups and no empty queries, and what it is shown
does not depend on the others.

The layers of encoder and decoder are computed again for the gradient (`model.remat`): the samples
of one layer of the encoder alone are about 1.5 GB per image (docs/provenance/retraining.md, section
7.1). Where memory is still short: `remat` all, `precision` bfloat16, or more devices; query drop
ranks the whole batch, which micro-batches would cut.
"""

from collections.abc import Callable

from weaksam_jax.data.augment import AugmentConfig
from weaksam_jax.data.scales import Scales, shared_sizes
from weaksam_jax.detectors.dino.config import (
    DataConfig,
    DinoConfig,
    DinoLossConfig,
    DinoOptimConfig,
    ModelConfig,
    TestConfig,
)
from weaksam_jax.detectors.dino.loss_config import QueryDropConfig

BATCH = 16
MILESTONES = (8, 10, 12)  # epochs
EPOCHS = 14


def _scales(max_side: int, stride: int, *short_sides: int) -> Scales:
    return shared_sizes(short_sides, max_side, stride)


def r50() -> ModelConfig:
    """mmdetection's DINO-4scale with ResNet-50."""
    return ModelConfig(
        backbone="resnet50",
        strides=(8, 16, 32, 64),
        channels=256,
        ffn_width=2048,
        encoder_layers=6,
        decoder_layers=6,
        queries=900,
        neck_groups=32,
        remat="layers",
    )


def _published(images: int, passes: int) -> DinoConfig:
    """From torchvision's weights, 16 images per step; an epoch is so many passes."""

    def steps(epochs: int) -> int:
        return round(epochs * passes * images / BATCH)

    return DinoConfig(
        model=r50(),
        optim=DinoOptimConfig(
            optimizer="adamw",
            lr=9e-5,
            backbone_lr=0.1,
            weight_decay=1e-4,
            clip=0.1,
            warmup=0,
            schedule="steps",
            milestones=tuple(map(steps, MILESTONES)),
            steps=steps(EPOCHS),
            batch_size=BATCH,
            checkpoint_every=500,
        ),
        data=DataConfig(_scales(1344, 32, 640, 736, 800), AugmentConfig(scale=(0.75, 1.25))),
        test=TestConfig(
            tta_scales=_scales(2000, 8, 488, 576, 688, 864, 1200), batch_size=4, max_detections=300
        ),
    )


def voc07() -> DinoConfig:
    """VOC07 trainval: 42 passes over 5011 images; 10 test views."""
    return _published(5011, 3)


def voc12() -> DinoConfig:
    """VOC12 trainval: 42 passes over 11,540 images."""
    return _published(11_540, 3)


def coco14() -> DinoConfig:
    """COCO14 train: 14 passes over 82,783 images."""
    return _published(82_783, 1)


def mini() -> DinoConfig:
    """The embedded mini set on 2 CPU cores, from the MIL detector's backbone: half the heads and
    points take two thirds of the time of a step. Queries are dropped from the middle on, when
    their losses say something."""
    return DinoConfig(
        model=ModelConfig(heads=4, points=2),
        loss=DinoLossConfig(drop=QueryDropConfig(start=900)),
        optim=DinoOptimConfig(optimizer="adamw", lr=5e-4, clip=0.1, steps=1800),
        data=DataConfig((((160, 160),),), AugmentConfig(scale=(0.7, 1.4), colour=0.2)),
    )


def light() -> DinoConfig:
    """Photographs on 2 CPU cores: EfficientNet-Lite0, only its blocks at stride 32 trained."""
    sizes = ((288, 384), (384, 288))
    return DinoConfig(
        model=ModelConfig(backbone="lite0", channels=96, ffn_width=384),
        optim=DinoOptimConfig(optimizer="adamw", lr=3e-4, clip=0.1, steps=2000, batch_size=4),
        data=DataConfig((sizes,), AugmentConfig(scale=(0.75, 1.25), colour=0.2)),
        test=TestConfig(tta_scales=(sizes, ((384, 512), (512, 384))), batch_size=4, tag_power=1.0),
    )


# All configs by name, for commands.
PRESETS: dict[str, Callable[[], DinoConfig]] = {
    recipe.__name__: recipe for recipe in (mini, light, voc07, voc12, coco14)
}
