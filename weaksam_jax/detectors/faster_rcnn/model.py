"""Faster R-CNN with a feature pyramid (Ren et al. 2015; Lin et al. 2017), at any size.

With a `ResNet50` and the default arguments it is detectron2's R50-FPN, but for RoIAlign's number of
samples: detectron2's ceil(side / 7) has no static shape, so it is torchvision's 2. The mini and
light configs use the same modules with fewer levels and channels.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from weaksam_jax.backbones.fpn import FPN, XAVIER
from weaksam_jax.backbones.layers import Conv
from weaksam_jax.ops.anchors import pyramid_anchors
from weaksam_jax.ops.matching import pyramid_level
from weaksam_jax.ops.roi import roi_align_pyramid


class RPNHead(nn.Module):
    """Pyramid levels `[B, H_l, W_l, C]` -> (objectness logits `[B, H_l * W_l * A]`, deltas
    `[B, H_l * W_l * A, 4]`) per level; anchors ordered as in `weaksam_jax.ops.anchors`. Computes in
    `dtype`, returns float32."""

    anchors_per_cell: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        small = nn.initializers.normal(0.01)

        def conv(features, size, name):
            kernel = (size, size)
            return Conv(features, kernel, dtype=self.dtype, kernel_init=small, name=name)

        shared = conv(levels[0].shape[-1], 3, "conv")
        objectness = conv(self.anchors_per_cell, 1, "objectness")
        deltas = conv(4 * self.anchors_per_cell, 1, "deltas")
        hidden = [nn.relu(shared(level)) for level in levels]
        return (
            [objectness(x).astype(jnp.float32).reshape(x.shape[0], -1) for x in hidden],
            [deltas(x).astype(jnp.float32).reshape(x.shape[0], -1, 4) for x in hidden],
        )


class BoxHead(nn.Module):
    """Pooled RoIs `[R, S, S, C]` -> (class logits `[R, classes + 1]`, background last; deltas
    `[R, classes, 4]`, class-specific). Two hidden layers of `fc_width`. Computes in `dtype`,
    returns float32."""

    classes: int
    fc_width: int = 1024
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pooled: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = pooled.reshape(pooled.shape[0], -1)

        def dense(features, init, name):
            return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)

        x = nn.relu(dense(self.fc_width, XAVIER, "fc1")(x))
        x = nn.relu(dense(self.fc_width, XAVIER, "fc2")(x))
        normal = nn.initializers.normal
        logits = dense(self.classes + 1, normal(0.01), "cls")(x).astype(jnp.float32)
        deltas = dense(4 * self.classes, normal(0.001), "box")(x).astype(jnp.float32)
        return logits, deltas.reshape(-1, self.classes, 4)


class FasterRcnnNetwork(nn.Module):
    """backbone: images `[B, H, W, 3]` -> maps at `strides[: len(strides) - extra_levels]`.

    strides: of the pyramid's levels; anchor_sizes: a tuple of sizes in pixels for each level (the
    same number everywhere); anchor_ratios: height / width. channels: of the pyramid. RoIs are
    pooled from the levels of the backbone (not the extra ones), `pool_size`² cells of
    `sampling_ratio`² samples, level by FPN's equation 1 with `canonical_size` pixels at level
    `canonical_level` (0 = finest). roi_chunk: see `roi_align_pyramid`.

    torchvision's conventions, for its weights: aligned=False (RoIAlign without the half-pixel
    shift) and round_anchors=True (`pyramid_anchors`). dtype: of the pyramid and both heads (the
    backbone has its own); logits, deltas and all box algebra are float32 in any case.
    """

    backbone: nn.Module
    classes: int
    _: KW_ONLY
    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    anchor_sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    channels: int = 256
    extra_levels: int = 1
    fc_width: int = 1024
    pool_size: int = 7
    sampling_ratio: int = 2
    canonical_size: float = 224.0
    canonical_level: int = 2
    roi_chunk: int | None = None
    aligned: bool = True
    round_anchors: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        self.fpn = FPN(self.channels, self.extra_levels, self.dtype)
        self.rpn = RPNHead(len(self.anchor_sizes[0]) * len(self.anchor_ratios), self.dtype)
        self.box_head = BoxHead(self.classes, self.fc_width, self.dtype)

    def __call__(self, images: jax.Array, boxes: jax.Array):
        """Runs every part once (for `init`): images `[B, H, W, 3]`, boxes `[B, R, 4]`."""
        levels = self.pyramid(images)
        return self.propose(levels), self.classify(levels, boxes)

    def pyramid(self, images: jax.Array) -> list[jax.Array]:
        """The pyramid's levels of normalised images `[B, H, W, 3]`."""
        return self.fpn(self.backbone(images))

    def propose(self, levels: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        """Objectness logits `[B, N_l]` and deltas `[B, N_l, 4]` of each level's anchors."""
        return self.rpn(levels)

    def classify(
        self, levels: Sequence[jax.Array], boxes: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Class logits `[B, R, classes + 1]`, deltas `[B, R, classes, 4]` of boxes `[B, R, 4]`."""
        used = len(self.strides) - self.extra_levels
        level = pyramid_level(
            boxes, used, self.canonical_size, canonical_level=self.canonical_level
        )

        def pool(maps, boxes, level):
            return roi_align_pyramid(
                maps,
                self.strides[:used],
                boxes,
                level=level,
                output_size=self.pool_size,
                sampling_ratio=self.sampling_ratio,
                aligned=self.aligned,
                chunk=self.roi_chunk,
            )

        pooled = jax.vmap(pool)(list(levels[:used]), boxes, level)
        logits, deltas = self.box_head(pooled.reshape(-1, *pooled.shape[2:]))
        batch = boxes.shape[:2]
        return logits.reshape(*batch, -1), deltas.reshape(*batch, self.classes, 4)

    def anchors(self, levels: Sequence[jax.Array]) -> list[jax.Array]:
        """The anchors of each level, `[N_l, 4]`."""
        shapes = [level.shape[1:3] for level in levels]
        return pyramid_anchors(
            shapes,
            self.strides,
            self.anchor_sizes,
            ratios=self.anchor_ratios,
            rounded=self.round_anchors,
        )
