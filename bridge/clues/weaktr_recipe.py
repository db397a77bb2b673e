"""How WeakTr is trained: the published recipe, and the mini set's."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from bridge.clues.weaktr_net import Fusion, Reach, Stem, WeakTrConfig
from weaksam_jax.ranges import (
    Amount,
    Batch,
    Count,
    Fault,
    Layers,
    Positive,
    Rate,
    Settings,
    Share,
    Side,
    Width,
    Workers,
    above,
    integers,
)


@dataclass(frozen=True)
class WeakTrRecipe(Settings):
    """Network sizes as in `WeakTrConfig`, and how the network is trained."""

    dim: Width = 384
    """Channels of the transformer."""
    heads: Layers = 6
    """Attention heads per layer."""
    depth: Layers = 12
    """Layers."""
    patch: Side = 16
    """Side of a patch in pixels."""
    fusion: Fusion = "v3"
    """How attention weights are fused: v3 (published), v1, uniform."""
    stem: Stem = "patch"
    """patch: one strided convolution; conv: several, for training from scratch."""
    drop_path: Rate = 0.1
    """Chance with which the last layer is left out in training; earlier ones less."""
    reach: Reach | None = None
    """Patches attend to those so many patches away [all]."""
    crop: Side = 224
    """Side of the training crops in pixels, a multiple of `patch`."""
    min_scale: Annotated[float, above(0, 1)] = 0.08
    """Least share of the image's area in a crop."""
    augment: Literal["light", "timm"] = "timm"
    """light: crop, mirror, colour jitter; timm: crop, mirror, RandAugment, random erasing."""
    jitter: Share = 0.4
    """Strength of the light colour jitter."""
    epochs: Count = 60
    """Passes over the images."""
    warmup_epochs: Annotated[int, integers(0, 1_000_000)] = 5
    """Of them, with a rate that rises from `warmup_lr` to `lr`."""
    batch_size: Batch = 64
    """Images per step."""
    lr: Positive = 6e-4 * 64 / 512
    """Highest rate, used as it is; a cosine falls from it to `min_lr`."""
    warmup_lr: Amount = 1e-6
    """First rate."""
    min_lr: Amount = 1e-5
    """Last rate."""
    weight_decay: Amount = 0.03
    """Of AdamW."""
    init: Path | None = None
    """File of published DeiT weights to start from [random weights]."""
    workers: Workers = 2
    """Processes that decode and augment."""

    def misfits(self) -> Iterator[Fault]:
        if self.dim % self.heads:
            yield Fault("heads", f"{self.heads} do not divide dim {self.dim}", "give a divisor")
        if self.crop % self.patch:
            yield Fault("crop", f"is {self.crop}", f"give a multiple of patch, {self.patch}")

    @classmethod
    def paper(
        cls,
        init: Path | None = None,
        lr_at_512: float = 6e-4,
        batch_size: int = 64,
        epochs: int = 60,
        workers: int = 2,
    ) -> "WeakTrRecipe":
        """The recipe of WeakTr's official code, from the file `init` of ImageNet DeiT-S.

        lr_at_512: the peak rate of a batch of 512, scaled to batch_size; official: 6e-4 for VOC12,
        2e-4 for COCO14 (docs/provenance/proposals.md, section 1.4).
        """
        lr = lr_at_512 * batch_size / 512
        return cls(init=init, lr=lr, batch_size=batch_size, epochs=epochs, workers=workers)

    @classmethod
    def mini(cls) -> "WeakTrRecipe":
        """From scratch on a few hundred drawn images in little more than a minute of two cores."""
        return cls(
            dim=64,
            heads=4,
            depth=3,
            patch=8,
            stem="conv",
            drop_path=0.0,
            reach=1,
            crop=112,
            min_scale=0.5,
            augment="light",
            jitter=0.1,
            epochs=36,
            warmup_epochs=2,
            batch_size=10,
            lr=1.5e-3,
            weight_decay=0.05,
        )

    def config(self, classes: int) -> WeakTrConfig:
        """The network for that many classes."""
        grid = self.crop // self.patch
        return WeakTrConfig(
            classes,
            self.dim,
            self.heads,
            depth=self.depth,
            patch=self.patch,
            grid=grid,
            fusion=self.fusion,
            stem=self.stem,
            drop_path=self.drop_path,
            reach=self.reach,
        )


def learning_rate(recipe: WeakTrRecipe, epoch: float) -> float:
    """The rate at a (fractional) epoch: linear warm-up, then a cosine down to min_lr.

    timm's scheduler, which DeiT's training script uses, changes once an epoch and counts the cosine
    from epoch 0, warm-up included: in the middle its rate is a tenth lower (`paper()`, epoch 32:
    3.91e-5 instead of 4.34e-5). Which of the two WeakTr's figures are from is not known.
    """
    if epoch < recipe.warmup_epochs:
        share = epoch / recipe.warmup_epochs
        return recipe.warmup_lr + share * (recipe.lr - recipe.warmup_lr)
    share = (epoch - recipe.warmup_epochs) / max(1, recipe.epochs - recipe.warmup_epochs)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * share)) / 2
