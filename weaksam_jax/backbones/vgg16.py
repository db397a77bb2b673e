"""VGG16 as weakly supervised detection has it: stride 8, block 5 dilated (Tang et al. 2017)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from weaksam_jax.backbones.layers import Conv

CONVOLUTIONS = (2, 2, 3, 3, 3)  # of each block; the last of block 5 is "conv5_3"
WIDTH, FACTORS = 64, (1, 2, 4, 8, 8)  # channels of the blocks
_POOLED_BLOCKS, _DILATED_BLOCK = 3, 5


class Vgg16(nn.Module):
    """Images `[B, H, W, 3]`, sides multiples of 8 -> one map float32
    `[B, H/8, W/8, 8 width]`.

    Thirteen 3x3 convolutions with bias and ReLU; 2x2 max pooling behind blocks 1 to 3 alone, block
    5 has dilation 2. width: channels of the first block; the others have 2, 4, 8 and 8 times as
    many (None: 64, Simonyan and Zisserman 2015, configuration D). rectify_last: ReLU behind conv5_3
    too (OICR's official code; MIST's has none, so that its features may be negative). dtype: of the
    convolutions; parameters and output are float32.
    """

    width: int | None = None
    rectify_last: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x, width = images, self.width or WIDTH
        for block, (count, factor) in enumerate(zip(CONVOLUTIONS, FACTORS, strict=True), 1):
            dilation = 2 if block == _DILATED_BLOCK else 1
            for layer in range(1, count + 1):
                x = Conv(
                    factor * width,
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
        return x.astype(jnp.float32)
