"""The paper's MIL detectors as settings: MIST and OICR on VOC07, VOC12 and COCO14.

Values are those of the released configurations (20-wsod.md, sections 1, 3, 4 and 6), which the
paper does not print. What differs from them, in all recipes: a batch has one scale instead of one
an image; Concrete DropBlock is off (`drop_block`). OICR: the paper's rule of 2017 instead of the
release's (`oicr_rule`), and 8 images a step instead of 4, for the same number of epochs.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from weaksam_jax.data.scales import canvases_of
from weaksam_jax.detectors.mil.config import WsodSettings, light, mini

Method = Literal["mist", "oicr"]
LONG_SIDE = 2000  # pixels


def _scales(*short_sides: int):
    return tuple(canvases_of(side, LONG_SIDE) for side in short_sides)


def _mist() -> WsodSettings:
    """What the three data sets share: VGG16 with a stride of 8, RoI max-pooling, 14 test views."""
    short_sides = (480, 576, 688, 864, 1000, 1200)
    return WsodSettings(
        method="mist",
        backbone="vgg16",
        pixels="mist",
        rectify_last=False,
        frozen_blocks=2,
        pooling="max",
        pool_size=7,
        width=4096,
        dropout=0.5,
        evidence=0.0,
        scales=_scales(*short_sides),
        test_scales=_scales(800, *short_sides),
        jitter=(1.0, 1.0),
        colour=0.0,
        lighting=0.1,
        hide=0.0,
        max_proposals=4096,  # more than anyone has: the padding is that of the largest image
        min_side=20.0,
        pretrain_steps=0,
        batch=8,
        rate=1e-5,
        optimizer="adam_l2",
        warmup=200,
        warmup_from=1 / 3,
        weight_decay=5e-4,
        clip=None,
        tag_weight=0.0,
        checkpoint_every=1000,
        test_batch=4,
        every_class=False,
    )


def _oicr() -> WsodSettings:
    """The release's OICR is another code base: other pixels, losses, scales, no mirrored views."""
    return replace(
        _mist(),
        method="oicr",
        pixels="oicr",
        rectify_last=True,
        frozen_blocks=0,
        pooling="max_exact",
        background=False,
        image_loss="sum",
        lighting=0.0,
        scales=_scales(488, 576, 688, 864, 1200),
        test_scales=None,
        test_mirrored=False,
        rate=8e-6,
        refine_rate=10.0,
        warmup=500,
        warmup_from=1e-3,
    )


def voc07(method: Method = "mist") -> WsodSettings:
    """VOC07 trainval, 5011 images: 48 epochs of MIST, 50 of OICR."""
    if method == "oicr":
        return replace(_oicr(), steps=31_300, milestones=(22_550,))
    return replace(_mist(), steps=30_000, milestones=(20_000, 26_700))


def voc12(method: Method = "mist") -> WsodSettings:
    """VOC12 trainval, 11540 images: 22 epochs of MIST, 25 of OICR."""
    if method == "oicr":
        return replace(_oicr(), steps=36_050, milestones=(25_950,))
    return replace(_mist(), steps=32_000, milestones=(20_000, 26_700))


def coco14(method: Method = "mist") -> WsodSettings:
    """COCO14 train, 82783 images: 12 epochs of both; boxes from 2 pixels on."""
    if method == "oicr":
        return replace(
            _oicr(),
            pixels="torchvision",
            scales=_scales(480, 576, 688, 864, 1000, 1200),
            rate=1e-5,
            steps=124_150,
            milestones=(82_800, 113_800),
            min_side=2.0,
        )
    return replace(_mist(), steps=125_000, milestones=(82_500, 115_000), warmup=500, min_side=2.0)


# All settings by name, for commands.
PRESETS: dict[str, Callable[[], WsodSettings]] = {
    "mini": mini,
    "light": light,
    **{
        f"{recipe.__name__}_{method}": partial(recipe, method)
        for recipe in (voc07, voc12, coco14)
        for method in ("mist", "oicr")
    },
}
