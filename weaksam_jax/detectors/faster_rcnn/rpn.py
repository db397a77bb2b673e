"""Head of the region proposal network (Faster R-CNN §3.1) on a pyramid."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class RPNHead(nn.Module):
    """Pyramid levels `[B, H_l, W_l, C]` -> (objectness logits `[B, H_l * W_l * A]`, deltas
    `[B, H_l * W_l * A, 4]`) a level; anchors ordered as in `weaksam_jax.ops.anchors`. Computes in
    `dtype`, returns float32."""

    anchors_per_cell: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        small = nn.initializers.normal(0.01)

        def conv(features, size, name):
            kernel = (size, size)
            return nn.Conv(features, kernel, dtype=self.dtype, kernel_init=small, name=name)

        shared = conv(levels[0].shape[-1], 3, "conv")
        objectness = conv(self.anchors_per_cell, 1, "objectness")
        deltas = conv(4 * self.anchors_per_cell, 1, "deltas")
        hidden = [nn.relu(shared(level)) for level in levels]
        return (
            [objectness(x).astype(jnp.float32).reshape(x.shape[0], -1) for x in hidden],
            [deltas(x).astype(jnp.float32).reshape(x.shape[0], -1, 4) for x in hidden],
        )
