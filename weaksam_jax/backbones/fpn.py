"""Feature pyramid network (Lin et al. 2017, §3) over the maps of any backbone."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from weaksam_jax.backbones.layers import Conv

# Caffe2's XavierFill, which detectron2 uses here: uniform with variance 1 / fan_in.
XAVIER = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class FPN(nn.Module):
    """Maps `[B, H_l, W_l, C_l]`, finest first, each half the last -> maps of `channels` channels.

    1x1 laterals, nearest x2 from above, sum, 3x3 outputs, no norm. extra_levels: further levels,
    each every second cell of the one before (P6 of Faster R-CNN is 1 extra level of P2..P5).
    Returns `len(maps) + extra_levels` maps of `dtype`, finest first.
    """

    channels: int = 256
    extra_levels: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        def conv(size, name):
            kernel = (size, size)
            return Conv(self.channels, kernel, dtype=self.dtype, kernel_init=XAVIER, name=name)

        laterals = [conv(1, f"lateral{i}")(one) for i, one in enumerate(maps)]
        merged = [laterals[-1]]
        for lateral in laterals[-2::-1]:
            merged.insert(0, lateral + _twice(merged[0], lateral.shape[1], lateral.shape[2]))
        levels = [conv(3, f"output{i}")(one) for i, one in enumerate(merged)]
        for _ in range(self.extra_levels):
            levels.append(levels[-1][:, ::2, ::2])
        return levels


def _twice(x: jax.Array, height: int, width: int) -> jax.Array:
    """Nearest x2, cut to `[B, height, width, C]` (odd sizes of the finer map)."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, :height, :width]
