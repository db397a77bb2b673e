"""VGG16 as weakly supervised detection has it: stride 8, block 5 dilated (Tang et al. 2017)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

# (channels reversed to BGR, mean, standard deviation), for pixels in 0..255.
PIXELS = {
    "mist": (True, (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0)),
    "oicr": (True, (104.0, 117.0, 124.0), (1.0, 1.0, 1.0)),
    "torchvision": (False, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}
CONVOLUTIONS = (2, 2, 3, 3, 3)  # of each block; the last of block 5 is "conv5_3"
_POOLED_BLOCKS, _DILATED_BLOCK = 3, 5


def vgg_input(image: jax.Array, pixels: str) -> jax.Array:
    """uint8 RGB `[..., 3]` -> float32 as the weights were trained with.

    pixels: "mist" and "oicr" are BGR less a mean, in 0..255 (the releases of MIST, and of OICR for
    VOC; the Caffe weights); "torchvision" is RGB less the mean over the standard deviation
    (torchvision's weights; OICR's release for COCO, with the Caffe weights all the same). Callers
    set the padding of a canvas to 0 afterwards.
    """
    bgr, mean, std = PIXELS[pixels]
    image = (image[..., ::-1] if bgr else image).astype(jnp.float32)
    return (image - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


class Vgg16(nn.Module):
    """Images `[B, H, W, 3]` of `vgg_input`, sides multiples of 8 -> one map float32
    `[B, H/8, W/8, channels[4]]`.

    Thirteen 3x3 convolutions with bias and ReLU; 2x2 max pooling behind blocks 1 to 3 alone, block
    5 has dilation 2. channels: of each block (Simonyan and Zisserman 2015, configuration D).
    rectify_last: ReLU behind conv5_3 too (OICR's release; MIST's has none, so that its features may
    be negative). frozen_blocks: the first so many blocks get no gradient, and XLA computes none for
    them; their parameters still need an optimizer without decay for them. dtype: of the
    convolutions; parameters and output are float32.
    """

    channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    rectify_last: bool = False
    frozen_blocks: int = 2
    dtype: jnp.dtype = jnp.float32

    stride = 8

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for block, (count, channels) in enumerate(zip(CONVOLUTIONS, self.channels, strict=True), 1):
            dilation = 2 if block == _DILATED_BLOCK else 1
            for layer in range(1, count + 1):
                x = nn.Conv(
                    channels,
                    (3, 3),
                    padding=dilation,
                    kernel_dilation=dilation,
                    dtype=self.dtype,
                    kernel_init=nn.initializers.he_normal(),
                    name=f"conv{block}_{layer}",
                )(x)
                if (block, layer) != (5, 3) or self.rectify_last:
                    x = nn.relu(x)
            if block <= _POOLED_BLOCKS:
                x = nn.max_pool(x, (2, 2), (2, 2))
            if block == self.frozen_blocks:
                x = jax.lax.stop_gradient(x)
        return x.astype(jnp.float32)
