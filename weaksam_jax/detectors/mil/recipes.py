"""The paper's MIL detectors as configs: MIST and OICR on VOC07, VOC12 and COCO14.

Values are those of the official configurations (docs/provenance/mil.md, sections 1, 3, 4 and 6),
which the paper does not print. What differs from them, in all recipes: a batch has one scale
instead of one per image; Concrete DropBlock is off (`drop_block`). OICR: the paper's rule of 2017
instead of the official code's (`oicr_rule`), and 8 images per step instead of 4, for the same
number of epochs.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from weaksam_jax.data.augment import AugmentConfig
from weaksam_jax.data.scales import Scales, shared_sizes
from weaksam_jax.detectors.mil.config import (
    DataConfig,
    LossConfig,
    MilConfig,
    MilOptimConfig,
    ModelConfig,
    TestConfig,
    light,
    mini,
)

Method = Literal["mist", "oicr"]
LONG_SIDE = 2000  # pixels


def _scales(*short_sides: int) -> Scales:
    return shared_sizes(short_sides, LONG_SIDE)


def _mist(steps: int, milestones: tuple[int, ...], min_side: float, warmup: int = 200) -> MilConfig:
    """VGG16 with a stride of 8, RoI max-pooling, Adam with L2, 14 test views."""
    short_sides = (480, 576, 688, 864, 1000, 1200)
    return MilConfig(
        model=ModelConfig(
            method="mist",
            backbone="vgg16",
            pixels="mist",
            pooling="max",
            pool_size=7,
            fc_width=4096,
            dropout=0.5,
            class_maps=False,
            evidence=0.0,
            fc_std=0.01,
            score_std=0.001,
        ),
        loss=LossConfig(tag_weight=0.0),
        optim=MilOptimConfig(
            optimizer="adam_l2",
            lr=1e-5,
            weight_decay=5e-4,
            clip=None,
            warmup=warmup,
            warmup_from=1 / 3,
            schedule="steps",
            milestones=milestones,
            steps=steps,
            batch_size=8,
            checkpoint_every=1000,
            pretrain_steps=0,
        ),
        data=DataConfig(
            scales=_scales(*short_sides),
            augment=AugmentConfig(lighting=0.1),
            max_proposals=4096,  # more than anyone has: the padding is that of the largest image
            min_side=min_side,
        ),
        test=TestConfig(tta_scales=_scales(800, *short_sides), batch_size=4, every_class=False),
    )


def _oicr(steps: int, milestones: tuple[int, ...], min_side: float, lr: float = 8e-6) -> MilConfig:
    """OICR's official code is another: other pixels, losses, scales, and no mirrored views."""
    base = _mist(steps, milestones, min_side, warmup=500)
    return MilConfig(
        model=replace(
            base.model,
            method="oicr",
            pixels="oicr",
            rectify_last=True,
            pooling="max_exact",
            background=False,
            score_std=0.01,
        ),
        loss=replace(base.loss, image_loss="sum"),
        optim=replace(base.optim, frozen=(), lr=lr, refine_lr=10.0, warmup_from=1e-3),
        data=replace(base.data, augment=AugmentConfig(), scales=_scales(488, 576, 688, 864, 1200)),
        test=replace(base.test, tta_scales=None, tta_flip=False),
    )


def voc07(method: Method = "mist") -> MilConfig:
    """VOC07 trainval, 5011 images: 48 epochs of MIST, 50 of OICR."""
    if method == "oicr":
        return _oicr(31_300, (22_550,), 20.0)
    return _mist(30_000, (20_000, 26_700), 20.0)


def voc12(method: Method = "mist") -> MilConfig:
    """VOC12 trainval, 11540 images: 22 epochs of MIST, 25 of OICR."""
    if method == "oicr":
        return _oicr(36_050, (25_950,), 20.0)
    return _mist(32_000, (20_000, 26_700), 20.0)


def coco14(method: Method = "mist") -> MilConfig:
    """COCO14 train, 82783 images: 12 epochs of both; boxes from 2 pixels on."""
    if method == "mist":
        return _mist(125_000, (82_500, 115_000), 2.0, warmup=500)
    base = _oicr(124_150, (82_800, 113_800), 2.0, lr=1e-5)
    scales = _scales(480, 576, 688, 864, 1000, 1200)
    return replace(
        base,
        model=replace(base.model, pixels="torchvision"),
        data=replace(base.data, scales=scales),
    )


# All configs by name, for commands.
PRESETS: dict[str, Callable[[], MilConfig]] = {
    "mini": mini,
    "light": light,
    **{
        f"{recipe.__name__}_{method}": partial(recipe, method)
        for recipe in (voc07, voc12, coco14)
        for method in ("mist", "oicr")
    },
}
