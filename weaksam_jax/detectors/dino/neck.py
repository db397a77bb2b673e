"""From a backbone's maps to levels of one width (mmdetection's ChannelMapper)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from weaksam_jax.backbones.layers import Conv
from weaksam_jax.detectors.dino.layers import EPSILON, XAVIER


class ChannelMapper(nn.Module):
    """Maps `[B, H, W, C_l]`, finest first -> as many of `channels`, and `extra` coarser ones.

    1x1 convolutions and GroupNorm; a further level is a 3x3 convolution of stride 2 and GroupNorm,
    the first of the last map itself, the next of the level before. bias: of the convolutions, which
    the official code has and mmdetection has not. Returns `dtype` (norms in float32).
    """

    channels: int
    extra: int = 1
    groups: int = 32
    bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        levels = [self.level(one, f"level{i}", 1) for i, one in enumerate(maps)]
        last = maps[-1]
        for i in range(self.extra):
            last = self.level(last, f"level{len(maps) + i}", 3)
            levels.append(last)
        return levels

    def level(self, x: jax.Array, name: str, side: int) -> jax.Array:
        conv = Conv(
            self.channels,
            (side, side),
            strides=1 if side == 1 else 2,
            padding=side // 2,
            use_bias=self.bias,
            dtype=self.dtype,
            kernel_init=XAVIER,
            name=f"{name}_conv",
        )
        norm = nn.GroupNorm(self.groups, epsilon=EPSILON, dtype=self.dtype, name=f"{name}_norm")
        return norm(conv(x))
