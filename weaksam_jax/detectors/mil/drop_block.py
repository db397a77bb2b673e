"""Concrete DropBlock: a small network learns which blocks of a RoI's features to drop, so that the
detector fails (Ren et al. 2020, MIST; sizes and rates of its official code)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from weaksam_jax.backbones.layers import Conv

BLOCK, RATE = 3, 0.3  # side of a block, and highest expected share of dropped cells
TEMPERATURE = 0.01
ADVERSARY = 0.01  # the mask network ascends this multiple of the detector's loss
_TINY = 1e-10
_BN_EPSILON = 1e-5


class ConcreteDropBlock(nn.Module):
    """Multiplies RoI features `[B, N, k, k, C]` with a random block mask; identity at inference.

    Called as `(x, valid, train)`, valid: bool `[B, N]`; returns the shape and type of x. A block of
    3x3 cells is dropped around each cell with a learned probability below 0.3 / 9 (a hard sample of
    the concrete distribution), what is left is scaled by #cells / #kept, one number for all valid
    RoIs. Needs the rng "drop_block" in training.

    One forward and backward does what the official code does in two: x gets the gradient of the
    loss with the mask as it is (the mask network sees x without gradient), the mask network -0.01
    times its own, so that descending on both is the min-max training of the paper. The official
    code updates the detector in between and draws a second mask.

    The scale and the batch statistics of the mask network run over all valid RoIs of the call:
    results depend on which images share a device (and a micro-batch), as in the official code.
    dtype: of the convolutions; statistics, sampling and mask are float32.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array, train: bool = False) -> jax.Array:
        if not (train or self.is_initializing()):
            return x
        share = self._share(jax.lax.stop_gradient(x), valid)
        if self.is_initializing():
            return x
        noise = gumbel(self.make_rng("drop_block"), (*share.shape, 2))
        keep = reverse_gradient(scaled_mask(share, noise, valid), ADVERSARY)
        return (x * keep[..., None]).astype(x.dtype)

    def _share(self, x, valid) -> jax.Array:
        """Probability `[B, N, k, k]` that a block is dropped around a cell."""
        rois = x.reshape(-1, *x.shape[2:])
        valid = valid.reshape(-1)

        def conv(features: int, side: int, name: str) -> nn.Conv:
            return Conv(features, (side, side), use_bias=False, dtype=self.dtype, name=name)

        y = conv(x.shape[-1], 3, "conv1")(rois)
        y = nn.relu(BatchNorm(name="norm1")(y, valid))
        # One output channel: the official code makes two and uses the first.
        y = BatchNorm(name="norm2")(conv(1, 3, "conv2")(y), valid)
        y = y + conv(1, 1, "shortcut")(rois).astype(jnp.float32)
        return nn.sigmoid(y).reshape(x.shape[:-1]) * (RATE / BLOCK**2)


class BatchNorm(nn.Module):
    """Batch normalisation of `[R, h, w, F]` by the statistics of the valid R, in float32.

    Always by those of the batch: at inference there is no mask and so no use for running averages.
    """

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        x, features = x.astype(jnp.float32), x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        weight = valid[:, None, None, None].astype(jnp.float32)
        count = jnp.maximum(valid.sum() * x.shape[1] * x.shape[2], 1)
        mean = (x * weight).sum((0, 1, 2)) / count
        variance = (jnp.square(x - mean) * weight).sum((0, 1, 2)) / count
        return (x - mean) * jax.lax.rsqrt(variance + _BN_EPSILON) * scale + bias


def gumbel(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard Gumbel noise in float32, finite for every uniform draw."""
    uniform = jax.random.uniform(key, shape, jnp.float32)
    return -jnp.log(-jnp.log(uniform + _TINY) + _TINY)


def scaled_mask(share: jax.Array, noise: jax.Array, valid: jax.Array) -> jax.Array:
    """The mask times #cells / #kept cells, float32 `[B, N, k, k]`.

    share: probability `[B, N, k, k]` of each cell to be the centre of a dropped block; noise:
    Gumbel noise `[B, N, k, k, 2]` of the pair (dropped, not); valid: bool `[B, N]`. Hard 0 or 1
    going forward; going back, each centre is the softmax of (log-probability + noise) / 0.01
    (straight through), of which the maximum over a block passes on the gradient of one centre.
    """
    logit = jnp.log(share + _TINY) - jnp.log(1 - share + _TINY)
    soft = nn.sigmoid((logit + noise[..., 0] - noise[..., 1]) / TEMPERATURE)
    hard = (logit + noise[..., 0] >= noise[..., 1]).astype(jnp.float32)
    centre = hard + (soft - jax.lax.stop_gradient(soft))
    flat = centre.reshape(-1, *centre.shape[2:], 1)
    mask = 1 - nn.max_pool(flat, (BLOCK, BLOCK), padding="SAME").reshape(share.shape)
    weight = jnp.broadcast_to(valid[..., None, None], mask.shape).astype(jnp.float32)
    kept = (mask * weight).sum()
    return mask * (weight.sum() / jnp.where(kept > 0, kept, 1.0))


@jax.custom_vjp
def reverse_gradient(x: jax.Array, weight: float) -> jax.Array:
    """x itself; its gradient is multiplied with -weight (Ganin and Lempitsky 2015)."""
    return x


reverse_gradient.defvjp(
    lambda x, weight: (x, weight), lambda weight, gradient: (-weight * gradient, None)
)
