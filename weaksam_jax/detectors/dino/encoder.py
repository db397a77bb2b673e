"""DINO's encoders: from levels to a memory of tokens."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from weaksam_jax.backbones.fpn import FPN
from weaksam_jax.detectors.dino.layers import DeformableAttention, FeedForward, layer_norm
from weaksam_jax.detectors.dino.positions import (
    Extent,
    Shapes,
    level_of_token,
    reference_points,
    token_codes,
)


def flatten_levels(levels: Sequence[jax.Array]) -> jax.Array:
    """Maps `[B, H, W, C]` -> tokens `[B, T, C]`."""
    return jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in levels], axis=1)


class EncoderLayer(nn.Module):
    """Deformable self-attention and two fully connected layers, each with a residual and a norm
    behind it: tokens, positions float32 `[B, T, C]`, references `[B, T, L, 2]` -> float32
    `[B, T, C]`."""

    shapes: Shapes
    heads: int
    points: int
    ffn_width: int
    dtype: Any

    @nn.compact
    def __call__(
        self, tokens: jax.Array, positions: jax.Array, references: jax.Array, *, valid: jax.Array
    ) -> jax.Array:
        attention = DeformableAttention(
            self.shapes, self.heads, self.points, dtype=self.dtype, name="self_attn"
        )
        found = attention(tokens + positions, references, tokens, valid=valid)
        tokens = layer_norm("norm0")(tokens + found)
        hidden = FeedForward(self.ffn_width, self.dtype, name="ffn")(tokens)
        return layer_norm("norm1")(tokens + hidden)


class DeformableEncoder(nn.Module):
    """Levels `[B, H, W, C]` of images with this extent -> memory float32 `[B, T, C]`."""

    layers: int
    heads: int
    points: int
    ffn_width: int
    temperature: float
    offset: float = 0.0
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array], extent: Extent) -> jax.Array:
        shapes = tuple(one.shape[1:3] for one in levels)
        channels = levels[0].shape[-1]
        embed = self.param("level_embed", nn.initializers.normal(1.0), (len(levels), channels))
        codes = token_codes(extent, channels, self.temperature, offset=self.offset)
        positions = codes + embed[level_of_token(shapes)]
        references, valid = reference_points(extent, shapes), extent.valid()
        tokens = flatten_levels(levels).astype(jnp.float32)
        kind = nn.remat(EncoderLayer) if self.remat else EncoderLayer
        for i in range(self.layers):
            layer = kind(
                shapes,
                self.heads,
                self.points,
                ffn_width=self.ffn_width,
                dtype=self.dtype,
                name=f"layer{i}",
            )
            tokens = layer(tokens, positions, references, valid=valid)
        return tokens


class PyramidEncoder(nn.Module):
    """A feature pyramid and a norm in the place of the deformable encoder, where gathers are slow:
    levels `[B, H, W, C]` -> memory float32 `[B, T, C]`. Ours, not the paper's."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array], extent: Extent) -> jax.Array:
        del extent  # what reads the memory leaves the padding out
        merged = FPN(levels[0].shape[-1], 0, self.dtype, name="fpn")(levels)
        return layer_norm("norm")(flatten_levels(merged).astype(jnp.float32))
