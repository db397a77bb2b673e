"""EfficientNet-Lite0 (Tan and Le, EfficientNet, table 1; the Lite variant: ReLU6, no squeeze and
excitation) with batch norm folded into the convolutions, as `bridge.convert` writes it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from weaksam_jax.backbones.layers import Conv

# A row per block: kernel, stride, expansion, output channels.
BLOCKS = (
    (3, 1, 1, 16),
    *((3, 2, 6, 24), (3, 1, 6, 24)),
    *((5, 2, 6, 40), (5, 1, 6, 40)),
    *((3, 2, 6, 80), (3, 1, 6, 80), (3, 1, 6, 80)),
    *((5, 1, 6, 112), (5, 1, 6, 112), (5, 1, 6, 112)),
    *((5, 2, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192)),
    (3, 1, 6, 320),
)
CHANNELS = (40, 112, 320)
_LEVEL_ENDS = (4, 10, 15)  # the last blocks at those strides


class Lite0(nn.Module):
    """Images `[B, H, W, 3]`, sides multiples of 32 -> maps at strides 8, 16, 32.

    Returns float32 `[B, H/8, W/8, 40]`, `[B, H/16, W/16, 112]`, `[B, H/32, W/32, 320]`: the
    (linear) outputs of blocks 4, 10 and 15; with `head`, the last is instead the 1280-channel
    output of the 1x1 head behind it. maps: which of the three are given back. width, dtype: as
    every backbone has them; this one has its own width and float32.
    """

    head: bool = False
    maps: tuple[int, ...] = (0, 1, 2)
    width: int | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        x = nn.relu6(_conv("stem", 32, 3, stride=2)(images))
        levels = []
        for i, (kernel, stride, expansion, features) in enumerate(BLOCKS):
            block = _Block(kernel, stride, expansion, features=features, name=f"block{i}")
            x = block(x)
            if i in _LEVEL_ENDS:
                levels.append(x)
        if self.head:
            levels[-1] = nn.relu6(_conv("head", 1280, 1, stride=1)(x))
        return tuple(levels[i] for i in self.maps)


class _Block(nn.Module):
    """Inverted residual block (MobileNetV2)."""

    kernel: int
    stride: int
    expansion: int
    features: int

    @nn.compact
    def __call__(self, x):
        y = x
        if self.expansion > 1:
            y = nn.relu6(_conv("expand", x.shape[-1] * self.expansion, 1, stride=1)(y))
        y = nn.relu6(_Depthwise(self.kernel, self.stride, name="depthwise")(y))
        y = _conv("project", self.features, 1, stride=1)(y)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class _Depthwise(nn.Module):
    """Depthwise convolution as a sum of shifted products.

    XLA's grouped convolution on CPU takes 10 to 20 times longer (31.8 against 1.6 ms for 96 x 96 x
    144, kernel 3); on GPU the sum fuses into one kernel.
    """

    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x):
        k, s = self.kernel, self.stride
        shape = (k, k, 1, x.shape[-1])
        weights = self.param(
            "kernel", nn.initializers.variance_scaling(2.0, "fan_in", "normal"), shape
        )
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        rows, columns = x.shape[1] // s, x.shape[2] // s
        x = jnp.pad(x, ((0, 0), _padding(k, s), _padding(k, s), (0, 0)))
        total = bias
        for i in range(k):
            for j in range(k):
                part = x[:, i : i + s * (rows - 1) + 1 : s, j : j + s * (columns - 1) + 1 : s]
                total = total + part * weights[i, j, 0]
        return total


def _conv(name: str, features: int, kernel: int, stride: int) -> nn.Conv:
    padding = [_padding(kernel, stride)] * 2
    return Conv(features, (kernel, kernel), (stride, stride), padding, name=name)


def _padding(kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after: TensorFlow's SAME for even sides (`bridge.weights.lite0`)."""
    before = (kernel - stride) // 2
    return before, kernel - stride - before
