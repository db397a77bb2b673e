"""A small convolutional network for the mini set, trained from scratch on tags."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def mini_input(image: jax.Array) -> jax.Array:
    """uint8 RGB -> float32 in [-1, 1]. Callers set the padding of a canvas to 0 afterwards."""
    return image.astype(jnp.float32) / 127.5 - 1.0


class MiniCnn(nn.Module):
    """Images `[B, H, W, 3]`, sides multiples of 8 -> one map float32 `[B, H/8, W/8, 4 width]`.

    Six 3x3 convolutions with bias and ReLU, no normalisation: group norm takes out the colour
    contrast of an image, by which the classes differ (tag mAP on the mini set after 400 steps: 0.98
    without, 0.25 with), and batch norm would need state beside the parameters. dtype: of the
    convolutions; parameters and the map are float32.
    """

    width: int = 24
    dtype: jnp.dtype = jnp.float32

    stride = 8

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for factor, stride in ((1, 2), (2, 2), (2, 1), (4, 2), (4, 1), (4, 1)):
            x = nn.Conv(
                factor * self.width,
                (3, 3),
                (stride, stride),
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
            )(x)
            x = nn.relu(x)
        return x.astype(jnp.float32)
