"""Backbones: one file each and one row in `BACKBONES`.

A row offers one or both of two forms. The pyramid (Faster R-CNN and what follows it): images
`[B, H, W, 3]` -> maps, finest first. The single map (the MIL detector): images -> one map, or maps
that the detector joins.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn

from weaksam_jax.backbones.lite0 import Lite0
from weaksam_jax.backbones.mini_cnn import MiniCnn, MiniPyramid
from weaksam_jax.backbones.resnet import ResNet50
from weaksam_jax.backbones.vgg16 import Vgg16
from weaksam_jax.errors import did_you_mean
from weaksam_jax.ranges import Fault, shown


@dataclass(frozen=True)
class Backbone:
    """What detectors must know of a backbone.

    pixels: its input, a name of `weaksam_jax.backbones.pixels.PIXELS`. pyramid, single: make the
    module of that form from `dtype` and, where the size is free, `width`; None where there is no
    such form. strides: of the pyramid's maps; stride: of the single map (the finest of several);
    maps: how many the single form gives. shared: the part of the pyramid's parameters that are
    those of the single map ("": all). scratch: whether training may start from fresh weights.
    frozen: the parts that keep their weights where the config says nothing. options: settings of
    the single form beside these, by the name that they have in a detector's config. connected: the
    detector's layers behind the map that ImageNet weights have, too. package: the kind of
    `bridge.convert` that takes ImageNet weights out of an installed package ("": they come as a
    file). file: the name of that file of weights, without suffix ("": the row's).
    """

    pixels: str
    pyramid: Callable[..., nn.Module] | None = None
    strides: tuple[int, ...] = ()
    single: Callable[..., nn.Module] | None = None
    stride: int = 0
    maps: int = 1
    shared: str = ""
    scratch: bool = False
    frozen: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    connected: tuple[str, ...] = ()
    package: str = ""
    file: str = ""


_RESNET = {"strides": (4, 8, 16, 32), "stride": 16, "frozen": ("stem", "res2")}
BACKBONES: dict[str, Backbone] = {
    "mini_cnn": Backbone(
        "mini",
        pyramid=MiniPyramid,
        strides=(8, 16, 32),
        single=MiniCnn,
        stride=8,
        shared="stem",
        scratch=True,
    ),
    "lite0": Backbone(
        "lite0",
        pyramid=Lite0,
        strides=(8, 16, 32),
        single=partial(Lite0, head=True, maps=(1, 2)),
        stride=16,
        maps=2,
        frozen=("stem", *(f"block{i}" for i in range(11))),
        package="efficientnet_lite0",
    ),
    "vgg16": Backbone(
        "mist",
        single=Vgg16,
        stride=8,
        frozen=("conv1", "conv2"),
        options=("rectify_last",),
        connected=("fc6/", "fc7/"),
    ),
    "resnet50": Backbone(
        "torchvision", pyramid=ResNet50, single=partial(ResNet50, dilate_last=True), **_RESNET
    ),
    "resnet50_msra": Backbone(
        "msra",
        pyramid=partial(ResNet50, stride_in_1x1=True),
        single=partial(ResNet50, stride_in_1x1=True, dilate_last=True),
        file="R-50",
        **_RESNET,
    ),
}


def unknown_backbone(name: str, form: Literal["pyramid", "single"]) -> Iterator[Fault]:
    """The fault of a config whose `backbone` is none of `BACKBONES` in that form; else nothing."""
    known = [one for one, row in BACKBONES.items() if getattr(row, form) is not None]
    if name not in known:
        hint = did_you_mean(name[:60], known, f"choose from {', '.join(known)}")
        yield Fault("backbone", f"{shown(name)} is no backbone of this detector", hint)


def is_frozen(path: Sequence[str], backbone: str, frozen: Sequence[str] | None) -> bool:
    """Whether a parameter of a detector, names from the root, keeps its value.

    backbone: row of `BACKBONES`. frozen [its own]: names of the backbone's parts ("stem", "res2",
    "block0"; "conv1" stands for all of VGG16's conv1_1, conv1_2, ...; "*" for the whole backbone).
    The norms of a ResNet are constants in any case (detectron2's FrozenBN).
    """
    if path[0] != "backbone":
        return False
    part, frozen = path[1], BACKBONES[backbone].frozen if frozen is None else frozen
    named = any(name in ("*", part) or part.startswith(f"{name}_") for name in frozen)
    return named or "norm" in path
