"""A small convolutional network for the mini set, trained from scratch on tags."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from weaksam_jax.backbones.layers import Conv

WIDTH = 24


class MiniCnn(nn.Module):
    """Images `[B, H, W, 3]`, sides multiples of 8 -> one map float32 `[B, H/8, W/8, 4 width]`.

    Six 3x3 convolutions with bias and ReLU, no normalisation: group norm takes out the colour
    contrast of an image, by which the classes differ (tag mAP on the mini set after 400 steps: 0.98
    without, 0.25 with), and batch norm would need state beside the parameters. dtype: of the
    convolutions; parameters and the map are float32.
    """

    width: int | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x, width = images, self.width or WIDTH
        for factor, stride in ((1, 2), (2, 2), (2, 1), (4, 2), (4, 1), (4, 1)):
            x = Conv(
                factor * width,
                (3, 3),
                (stride, stride),
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
            )(x)
            x = nn.relu(x)
        return x.astype(jnp.float32)


class MiniPyramid(nn.Module):
    """`MiniCnn` (stride 8, as the MIL detector has it) and two stages more: images `[B, H, W, 3]`,
    sides multiples of 32 -> maps at strides 8, 16, 32, all as wide as the first."""

    width: int | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        maps = [MiniCnn(self.width, self.dtype, name="stem")(images)]
        for i in range(2):
            stage = Conv(
                maps[0].shape[-1],
                (3, 3),
                (2, 2),
                kernel_init=nn.initializers.he_normal(),
                name=f"stage{i}",
            )
            maps.append(nn.relu(stage(maps[-1])))
        return tuple(maps)
