"""DINO's decoder: queries refine their boxes layer by layer."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from weaksam_jax.detectors.dino.layers import (
    XAVIER,
    DeformableAttention,
    FeedForward,
    Mlp,
    SelfAttention,
    layer_norm,
)
from weaksam_jax.detectors.dino.positions import Extent, Shapes, inverse_sigmoid, sine_code

REFINE_EPSILON = 1e-3  # of the inverse sigmoid between layers
TEMPERATURE = 10_000.0  # of the sine code of boxes
ORDER = np.array([1, 0, 2, 3])  # in which it takes a box: y, x, width, height


class Queries(NamedTuple):
    """content float32 `[B, Q, C]`; boxes float32 `[B, Q, 4]` (centre, sides) in shares of the
    image; visible bool `[B or 1, Q, Q]`: row q may attend to column k (None: to all)."""

    content: jax.Array
    boxes: jax.Array
    visible: jax.Array | None = None


class Memory(NamedTuple):
    """tokens float32 `[B, T, C]`, and what of them is image."""

    tokens: jax.Array
    extent: Extent


class DecoderLayer(nn.Module):
    """Self-attention, deformable attention to the memory, two fully connected layers, each with a
    residual and a norm behind it. x, positions float32 `[B, Q, C]`; references `[B, Q, L, 4]`."""

    shapes: Shapes
    heads: int
    points: int
    ffn_width: int
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        references: jax.Array,
        *,
        visible: jax.Array | None,
        memory: Memory,
    ) -> jax.Array:
        found = SelfAttention(self.heads, self.dtype, name="self_attn")(x, positions, visible)
        x = layer_norm("norm0")(x + found)
        cross = DeformableAttention(
            self.shapes, self.heads, self.points, dtype=self.dtype, name="cross_attn"
        )
        found = cross(x + positions, references, memory.tokens, valid=memory.extent.valid())
        x = layer_norm("norm1")(x + found)
        return layer_norm("norm2")(x + FeedForward(self.ffn_width, self.dtype, name="ffn")(x))


class Decoder(nn.Module):
    """Returns (hidden states float32 `[layers, B, Q, C]` behind the shared last norm, the boxes
    `[layers, B, Q, 4]` that each layer's prediction starts from).

    refine: for each layer, hidden states `[B, Q, C]` -> box deltas `[B, Q, 4]`. The boxes that go
    to the next layer carry no gradient; those that its prediction starts from do (look forward
    twice, DINO §3.5).
    """

    layers: int
    heads: int
    points: int
    ffn_width: int
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        queries: Queries,
        memory: Memory,
        shapes: Shapes,
        *,
        refine: Sequence[Callable[[jax.Array], jax.Array]],
    ) -> tuple[jax.Array, jax.Array]:
        kind = nn.remat(DecoderLayer) if self.remat else DecoderLayer
        channels = queries.content.shape[-1]
        place = Mlp((channels, channels), XAVIER, XAVIER, dtype=self.dtype, name="ref_point_head")
        norm, share = layer_norm("norm"), jnp.tile(memory.extent.ratios(), 2)[:, None]
        x, boxes, before = queries.content, queries.boxes, queries.boxes
        hidden, starts = [], []
        for i in range(self.layers):
            references = boxes[:, :, None] * share
            layer = kind(
                shapes,
                self.heads,
                self.points,
                ffn_width=self.ffn_width,
                dtype=self.dtype,
                name=f"layer{i}",
            )
            code = box_code(references[:, :, 0], channels)
            x = layer(x, place(code), references, visible=queries.visible, memory=memory)
            hidden.append(norm(x))
            starts.append(before)
            before = jax.nn.sigmoid(refine[i](x) + inverse_sigmoid(boxes, REFINE_EPSILON))
            boxes = jax.lax.stop_gradient(before)
        return jnp.stack(hidden), jnp.stack(starts)


def box_code(boxes: jax.Array, channels: int) -> jax.Array:
    """Sine codes of boxes `[..., 4]`: float32 `[..., 2 * channels]`."""
    codes = sine_code(boxes[..., ORDER], channels // 2, TEMPERATURE)
    return codes.reshape(*boxes.shape[:-1], 2 * channels)
