"""Parts of DINO's encoder and decoder layers. They compute in `dtype`; what is added up from layer
to layer, the statistics of norms, softmax and all positions are float32."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from weaksam_jax.detectors.dino.positions import Shapes
from weaksam_jax.ops.deformable_attention import deformable_attention_of_images

XAVIER = nn.initializers.xavier_uniform()
# PyTorch's attention draws query, key and value as one matrix of three times the rows.
XAVIER_OF_THREE = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
# PyTorch's linear layers: uniform in +-1 / sqrt(fan_in).
LINEAR = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
EPSILON = 1e-5  # of all norms, PyTorch's


def layer_norm(name: str) -> nn.LayerNorm:
    """A LayerNorm in float32."""
    return nn.LayerNorm(epsilon=EPSILON, name=name)


class SelfAttention(nn.Module):
    """Multi-head attention of queries to one another: x `[B, Q, C]`, positions `[B, Q, C]` (added
    for queries and keys, not for values), visible bool `[B or 1, Q, K]` or None (every query sees
    every other) -> float32 `[B, Q, C]`."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, visible: jax.Array | None) -> jax.Array:
        channels = x.shape[-1]

        def project(name, inputs):
            dense = nn.Dense(channels, dtype=self.dtype, kernel_init=XAVIER_OF_THREE, name=name)
            return dense(inputs).reshape(*x.shape[:2], self.heads, -1)

        placed = x + positions
        query, key = project("query", placed), project("key", placed)
        mask = None if visible is None else visible[:, None]
        found = jax.nn.dot_product_attention(query, key, project("value", x), mask=mask)
        out = nn.Dense(channels, dtype=self.dtype, kernel_init=XAVIER, name="out")
        return out(found.reshape(x.shape)).astype(jnp.float32)


class DeformableAttention(nn.Module):
    """Every query reads `points` places of each level (Deformable DETR, equation 3).

    query `[B, Q, C]` with its position; references float32 `[B, Q, L, 2 or 4]`, shares of each
    level's map: points, or boxes (centre and sides) within which offsets count in half sides over
    `points`; memory `[B, T, C]`, and which of its tokens are valid, bool `[B, T]`: the values of
    the others are 0. Returns float32 `[B, Q, C]`.
    """

    shapes: Shapes
    heads: int
    points: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, query: jax.Array, references: jax.Array, memory: jax.Array, *, valid: jax.Array
    ) -> jax.Array:
        channels, levels = memory.shape[-1], len(self.shapes)
        value = nn.Dense(channels, dtype=self.dtype, kernel_init=XAVIER, name="value_proj")(memory)
        value = jnp.where(valid[..., None], value, 0).reshape(*memory.shape[:2], self.heads, -1)
        places = (*query.shape[:2], self.heads, levels, self.points)
        count = self.heads * levels * self.points
        offsets = nn.Dense(
            2 * count,
            kernel_init=nn.initializers.zeros,
            bias_init=compass(self.heads, levels, self.points),
            name="sampling_offsets",
        )(query)
        weights = nn.Dense(count, kernel_init=nn.initializers.zeros, name="attention_weights")(
            query
        )
        weights = jax.nn.softmax(weights.reshape(*places[:3], -1)).reshape(places)
        locations = self.locations(references, offsets.reshape(*places, 2))
        found = deformable_attention_of_images(value, self.shapes, locations, weights=weights)
        found = found.reshape(*query.shape[:2], channels)
        out = nn.Dense(channels, dtype=self.dtype, kernel_init=XAVIER, name="output_proj")
        return out(found).astype(jnp.float32)

    def locations(self, references: jax.Array, offsets: jax.Array) -> jax.Array:
        """Shares of each level `[B, Q, H, L, P, 2]`."""
        references = references[:, :, None, :, None]
        if references.shape[-1] == 2:
            return references + offsets / np.asarray(self.shapes, np.float32)[:, None, ::-1]
        return references[..., :2] + offsets * (0.5 / self.points) * references[..., 2:]


def compass(heads: int, levels: int, points: int) -> Callable:
    """Offsets at the start: head h looks in the direction h / heads of a turn, point p at p + 1
    cells (on a square around the query)."""

    def init(key, shape, dtype=jnp.float32):
        turn = np.arange(heads) * 2 * np.pi / heads
        ways = np.stack([np.cos(turn), np.sin(turn)], -1)
        ways = ways / np.abs(ways).max(-1, keepdims=True)
        steps = np.arange(1, points + 1)[:, None]
        bias = np.broadcast_to(ways[:, None, None] * steps, (heads, levels, points, 2))
        return jnp.asarray(bias.reshape(shape), dtype)

    return init


class FeedForward(nn.Module):
    """Two layers with a rectifier between: `[..., C]` -> float32 `[..., C]`."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(self.width, dtype=self.dtype, kernel_init=XAVIER, name="fc0")(x))
        out = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=XAVIER, name="fc1")(hidden)
        return out.astype(jnp.float32)


class Mlp(nn.Module):
    """Fully connected layers of these widths with rectifiers between: `fc0`, `fc1`, ...; the last
    one computes in float32, with kernel `last_init`."""

    widths: tuple[int, ...]
    last_init: Callable = LINEAR
    init: Callable = LINEAR
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        *hidden, last = self.widths
        for i, width in enumerate(hidden):
            x = nn.relu(nn.Dense(width, dtype=self.dtype, kernel_init=self.init, name=f"fc{i}")(x))
        name = f"fc{len(hidden)}"
        return nn.Dense(last, kernel_init=self.last_init, name=name)(x.astype(jnp.float32))
