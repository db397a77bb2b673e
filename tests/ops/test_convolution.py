"""The CPU's forms of a convolution against XLA's own, values and gradients."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from weaksam_jax.backbones.layers import Conv
from weaksam_jax.engine.precision import products

# Options of a layer: kernels, strides and paddings as the networks have them, and odd ones.
LAYERS = {
    "3 x 3": {},
    "strides": {"strides": (2, 1)},
    "one cell": {"kernel_size": (1, 1), "strides": (2, 2)},
    "dilated": {"kernel_dilation": 2, "padding": 2},
    "uneven": {"kernel_size": (5, 2), "padding": ((0, 2), (1, 0)), "strides": (3, 2)},
    "valid": {"padding": "VALID", "strides": (2, 2)},
    "groups": {"feature_group_count": 3},
}


def value_and_gradients(layer, x, seed=1):
    params = layer.init(jax.random.key(seed), x)
    grad = jax.random.normal(jax.random.key(2), layer.apply(params, x).shape)
    grad = grad.astype(jnp.bfloat16).astype(x.dtype)  # values that both types have
    out, back = jax.vjp(layer.apply, params, x)
    return jax.tree.map(lambda a: np.asarray(a, np.float32), (out, *back(grad)))


@pytest.mark.parametrize("channels", [3, 24])
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_those_of_flax(name, channels):
    options = {"features": 6, "kernel_size": (3, 3), **LAYERS[name]}
    x = jax.random.normal(jax.random.key(0), (2, 9, 11, channels))
    ours, other = (value_and_gradients(kind(**options), x) for kind in (Conv, nn.Conv))
    for one, two in zip(*map(jax.tree.leaves, (ours, other)), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5 * np.abs(two).max(), rtol=1e-5)


def test_bfloat16_gradients_add_up_in_float32():
    x = jax.random.normal(jax.random.key(0), (4, 40, 40, 8), jnp.bfloat16)
    layer = Conv(4, (3, 3), dtype=jnp.bfloat16)
    whole = Conv(4, (3, 3)), x.astype(jnp.float32)
    ours, exact = value_and_gradients(layer, x)[1], value_and_gradients(*whole)[1]
    kernels = [one["params"]["kernel"] for one in (ours, exact)]
    np.testing.assert_allclose(*kernels, atol=0.02 * np.abs(kernels[1]).max())


def test_gradients_have_the_precision_of_the_pass_before():
    """The gradient is traced outside of `products`, as in a training step."""
    layer = Conv(4, (3, 3), use_bias=False)

    def loss(kernel, x):
        with products("tf32"):
            return jnp.sum(layer.apply({"params": {"kernel": kernel}}, x))

    arrays = jnp.ones((3, 3, 24, 4)), jnp.ones((1, 8, 8, 24))
    text = str(jax.make_jaxpr(jax.grad(loss))(*arrays))
    said = re.findall(r"precision=(\S+)", text)
    # The pass, nine products for CPUs, and the convolution's own gradient.
    assert len(said) >= 11 and not {"None", "None]"} & set(said), said
