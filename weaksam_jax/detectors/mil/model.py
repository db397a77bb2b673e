"""The multiple-instance detector: backbone, RoI features, two fully connected layers, WSDDN's two
streams and three refinement branches with box regression (OICR, MIST)."""

from collections.abc import Callable
from dataclasses import KW_ONLY

import flax.linen as nn
import jax
import jax.numpy as jnp

from weaksam_jax.backbones.layers import Conv
from weaksam_jax.detectors.mil.loss import BRANCH_WEIGHTS, MilOutputs

# (features [H, W, C], boxes [N, 4]) -> [N, k, k, C]
Pool = Callable[[jax.Array, jax.Array], jax.Array]
# Sides of the frame around a box, in sides of the box, and its weight (see `class_evidence`).
FRAME, FRAME_WEIGHT = 1.6, 1.5
MIN_FRAME = 3  # least output side of the pooling that has cells in the frame


class MilNetwork(nn.Module):
    """One interface for every backbone.

    backbone: images `[B, H, W, 3]` -> a map `[B, h, w, F]` or several, of which the last `levels`
    are used, finest first, each half the size of the last (they may be given instead of images:
    frozen features cached on disk; for them alone it may be None). neck: channels of a 1x1
    convolution on each map, summed at the size of the first, before pooling; None: the first map as
    it is. pool: RoI pooling of one image. fc_width: of both fully connected layers, dropout: behind
    each of them. evidence: weight of `class_evidence` of the detector's own class maps in the
    detection stream's logits; 0 is plain WSDDN.

    class_maps: the class maps of image-level training and of `evidence`; without them the published
    network. background: a background column in WSDDN's two streams (MIST's official code; OICR's
    has none). fc_std, score_std: standard deviation of the fresh kernels of fc6 and fc7 (None: He
    et al. 2015) and of the layers that score. dtype: of fc6 and fc7; the layers behind them are
    float32, as are all parameters. drop_block: a module called as `(pooled [B, N, k, k, F], valid
    bool [B, N], train)` between pooling and fc6.
    """

    classes: int
    pool: Pool
    backbone: nn.Module | None
    _: KW_ONLY
    levels: int = 1
    neck: int | None = None
    fc_width: int = 256
    dropout: float = 0.5
    evidence: float = 0.0
    class_maps: bool = True
    background: bool = True
    fc_std: float | None = None
    score_std: float = 0.01
    dtype: jnp.dtype = jnp.float32
    drop_block: nn.Module | None = None

    def setup(self):
        if self.neck is not None:
            start = nn.initializers.he_normal()
            self.necks = [Conv(self.neck, (1, 1), kernel_init=start) for _ in range(self.levels)]
        if self.class_maps:
            self.tags = Conv(self.classes, (1, 1), bias_init=nn.initializers.constant(-2.0))
        elif self.evidence:
            raise ValueError("evidence comes from the class maps")
        start = nn.initializers.normal(self.fc_std) if self.fc_std else nn.initializers.he_normal()
        self.fc6 = nn.Dense(self.fc_width, kernel_init=start, dtype=self.dtype)
        self.fc7 = nn.Dense(self.fc_width, kernel_init=start, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)
        small = nn.initializers.normal(self.score_std)
        self.cls = nn.Dense(self.classes + self.background, kernel_init=small)
        self.det = nn.Dense(self.classes + self.background, kernel_init=small)
        self.refine = [nn.Dense(self.classes + 1, kernel_init=small) for _ in BRANCH_WEIGHTS]
        flat = nn.initializers.normal(0.001)
        self.deltas = [nn.Dense(4 * (self.classes + 1), kernel_init=flat) for _ in BRANCH_WEIGHTS]

    def features(self, images) -> jax.Array:
        """Images `[B, H, W, 3]` (or a tuple of cached maps) -> maps `[B, h, w, F]` to pool from."""
        maps = images if isinstance(images, tuple) else self.backbone(images)
        maps = maps[-self.levels :] if isinstance(maps, tuple) else (maps,)
        if self.neck is None:
            return maps[0] if maps[0].dtype == self.dtype else maps[0].astype(jnp.float32)
        total = 0.0
        for i, (one, conv) in enumerate(zip(maps, self.necks, strict=True)):
            one = conv(one.astype(jnp.float32))
            total += one.repeat(2**i, axis=1).repeat(2**i, axis=2)
        return nn.relu(total)

    def tag_logits(self, maps: jax.Array, inside: jax.Array, top: int = 12) -> jax.Array:
        """Image-level logits `[B, classes]`: mean of the `top` best cells of each class map.

        inside: bool `[B, h, w]`, cells that are not padding. Few cells, because the telling part
        of a thing is small.
        """
        logits = jnp.where(inside[..., None], self.tags(maps), -1e4)
        cells = logits.reshape(logits.shape[0], -1, self.classes)
        return jax.lax.top_k(cells.transpose(0, 2, 1), min(top, cells.shape[1]))[0].mean(-1)

    def outputs(
        self,
        maps: jax.Array,
        boxes: jax.Array,
        prior: jax.Array,
        train: bool,
        valid: jax.Array | None = None,
    ) -> MilOutputs:
        """Maps `[B, h, w, F]`, boxes `[B, N, 4]` (input pixels) and their prior `[B, N, classes]`
        -> float32 `MilOutputs` with a leading image axis. train: dropout on (needs the rng
        "dropout"). valid: bool `[B, N]`, for the drop block (None: all).

        prior: what is known of the boxes beforehand (see `MilSamples`), added to the detection
        stream's logits; only differences within an image matter.
        """
        x = jax.vmap(self.pool)(maps, boxes)
        if self.drop_block is not None:
            x = self.drop_block(x, jnp.ones(x.shape[:2], bool) if valid is None else valid, train)
        x = x.reshape(*boxes.shape[:2], -1)
        x = self.drop(nn.relu(self.fc6(x)), deterministic=not train)
        x = self.drop(nn.relu(self.fc7(x)), deterministic=not train).astype(jnp.float32)
        first = int(self.background)  # column of the first class in the two streams
        det = self.det(x) + jnp.pad(prior, ((0, 0), (0, 0), (first, 0)))
        if self.evidence:
            shares = jax.lax.stop_gradient(nn.sigmoid(self.tags(maps)))
            det += self.evidence * class_evidence(self.pool, shares, boxes)[..., 1 - first :]
        deltas = [layer(x).reshape(*x.shape[:2], self.classes + 1, 4) for layer in self.deltas]
        refine = jnp.stack([layer(x) for layer in self.refine], axis=1)
        return MilOutputs(self.cls(x), det, refine, deltas=jnp.stack(deltas, axis=1))

    def __call__(self, images, inside, boxes, prior, train: bool = False, valid=None):
        """(tag logits or None without class maps, MilOutputs): every parameter takes part, so
        `init` uses this."""
        maps = self.features(images)
        logits = self.tag_logits(maps, inside) if self.class_maps else None
        return logits, self.outputs(maps, boxes, prior, train=train, valid=valid)


def class_evidence(pool: Pool, maps: jax.Array, boxes: jax.Array) -> jax.Array:
    """The mean of each class map inside a box, less 1.5 times its mean in the frame around it.

    maps: `[B, h, w, C]` in [0, 1], from image-level training; boxes: `[B, N, 4]`. Returns
    `[B, N, 1 + C]`, 0 for the background. A part of a thing has the rest of it in its frame, a box
    too large has less of it inside, while WSDDN's product of softmaxes alone prefers the most
    telling part (the contrast of ContextLocNet, Kantorov et al. 2016, on class maps). Boxes by this
    alone have CorLoc 50 on the mini set, and 62 with the quality of the proposals added.
    """
    both = jax.vmap(pool)
    inside = both(maps, boxes).mean((2, 3))
    around = both(maps, enlarge(boxes, FRAME))
    weight = frame(around.shape[2], FRAME)
    outside = (around * weight).sum((2, 3)) / weight.sum()
    return jnp.pad(inside - FRAME_WEIGHT * outside, ((0, 0), (0, 0), (1, 0)))


def enlarge(boxes: jax.Array, factor: float) -> jax.Array:
    """Boxes `[..., 4]` with sides `factor` times as long about the same centre."""
    center, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    return jnp.concatenate([center - factor * half, center + factor * half], axis=-1)


def frame(side: int, factor: float) -> jax.Array:
    """float32 `[side, side, 1]`: 0 in the bins whose centre the original box holds, else 1."""
    place = jnp.abs((jnp.arange(side) + 0.5) / side - 0.5) * 2 * factor
    inner = place < 1
    return (~(inner[:, None] & inner[None, :])).astype(jnp.float32)[..., None]
