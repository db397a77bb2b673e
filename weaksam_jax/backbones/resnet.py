"""ResNet-50 (He et al. 2016, table 1) with frozen batch norm, in the forms detectors start from."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from weaksam_jax.backbones.layers import Conv

BLOCKS = (3, 4, 6, 3)
WIDTH = 64  # channels of the stem


class ResNet50(nn.Module):
    """Images `[B, H, W, 3]` -> C2..C5 at strides 4, 8, 16, 32.

    Returns `dtype` `[B, ceil(H/s), ceil(W/s), 4 width 2^k]` (256, 512, 1024, 2048 channels at
    width 64). Parameters are float32.

    stride_in_1x1: a stage halves its map in its first 1x1 convolution (MSRA's Caffe weights) or in
    the 3x3 one (torchvision). dilate_last: the 3x3 convolutions of stage 5 have dilation 2 and no
    stride, so C5 is at stride 16 (all three blocks, as detectron2's RES5_DILATION; torchvision's
    own option leaves the first block at dilation 1). width: of the stem; 64 (None) is ResNet-50,
    less makes a small network of the same shape.

    Batch norm is a constant affine map everywhere, kept beside the convolutions and not folded into
    them: a folded kernel would see its gradient divided, and its weight decay multiplied, by the
    scale, so that SGD with the published learning rate would be another optimizer.
    """

    width: int | None = None
    stride_in_1x1: bool = False
    dilate_last: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        width = self.width or WIDTH
        x = _ConvNorm(width, 7, 2, dtype=self.dtype, name="stem")(images)
        x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), ((1, 1), (1, 1)))
        maps = []
        for k, blocks in enumerate(BLOCKS):
            dilated = self.dilate_last and k == 3
            stage = _Stage(
                blocks,
                width * 2**k,
                1 if k == 0 or dilated else 2,
                dilation=2 if dilated else 1,
                stride_in_1x1=self.stride_in_1x1,
                dtype=self.dtype,
                name=f"res{k + 2}",
            )
            x = stage(x)
            maps.append(x)
        return tuple(maps)


class _Stage(nn.Module):
    blocks: int
    width: int
    stride: int
    dilation: int
    stride_in_1x1: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        for i in range(self.blocks):
            stride = self.stride if i == 0 else 1
            block = _Bottleneck(
                self.width,
                stride,
                self.dilation,
                stride_in_1x1=self.stride_in_1x1,
                dtype=self.dtype,
                name=f"block{i}",
            )
            x = block(x)
        return x


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut, which is a 1x1 convolution where the shape changes."""

    width: int
    stride: int
    dilation: int
    stride_in_1x1: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        y = nn.relu(_ConvNorm(self.width, 1, first, dilation=1, dtype=self.dtype, name="conv1")(x))
        y = nn.relu(
            _ConvNorm(
                self.width, 3, second, dilation=self.dilation, dtype=self.dtype, name="conv2"
            )(y)
        )
        y = _ConvNorm(4 * self.width, 1, 1, dilation=1, dtype=self.dtype, name="conv3")(y)
        if x.shape[-1] != y.shape[-1]:
            shortcut = _ConvNorm(
                4 * self.width, 1, self.stride, dilation=1, dtype=self.dtype, name="shortcut"
            )
            x = shortcut(x)
        return nn.relu(x + y)


class _ConvNorm(nn.Module):
    """Convolution without bias, padded alike on all sides, and its frozen norm."""

    features: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        padding = self.dilation * (self.kernel // 2)
        x = Conv(
            self.features,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            [(padding, padding)] * 2,
            kernel_dilation=(self.dilation, self.dilation),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.he_normal(),
            name="conv",
        )(x)
        return _FrozenNorm(name="norm")(x)


class _FrozenNorm(nn.Module):
    """x * scale + bias per channel: batch norm in evaluation, its four vectors as two, which every
    detector holds constant (`weaksam_jax.backbones.is_frozen`)."""

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        return x * scale.astype(x.dtype) + bias.astype(x.dtype)
