"""The focal loss and its matching cost against torchvision's and the formula in float64."""

import bridge.runtime.torchvision_ops  # noqa: F401

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from weaksam_jax.losses.focal import binary_cross_entropy, focal_cost, focal_loss


def random_logits(shape=(40, 7), spread=4.0):
    rng = np.random.default_rng(0)
    return (spread * rng.standard_normal(shape)).astype(np.float32), rng.random(shape) < 0.3


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 2.0), (0.25, 1.5), (0.5, 1.0)])
def test_values_and_gradients_are_torchvisions(alpha, gamma):
    logits, labels = random_logits()
    weights = np.linspace(0.5, 2, logits.size, dtype=np.float32).reshape(logits.shape)
    theirs = torch.from_numpy(logits).double().requires_grad_()
    truth = torch.from_numpy(labels).double()
    want = sigmoid_focal_loss(theirs, truth, alpha, gamma)
    (want * torch.from_numpy(weights)).sum().backward()

    def total(x):
        value = focal_loss(x, labels, alpha, gamma=gamma)
        return (value * weights).sum(), value

    gradient, value = jax.grad(total, has_aux=True)(jnp.asarray(logits))
    np.testing.assert_allclose(value, want.detach(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, theirs.grad, rtol=1e-4, atol=1e-6)


def test_without_weights_it_is_the_binary_cross_entropy():
    logits, labels = random_logits()
    exact = torch.from_numpy(logits).double()  # in single precision it adds up two logarithms
    want = torch.nn.functional.binary_cross_entropy_with_logits(
        exact, torch.from_numpy(labels).double(), reduction="none"
    )
    np.testing.assert_allclose(binary_cross_entropy(logits, labels), want, rtol=1e-5, atol=1e-7)


def test_the_cost_is_the_difference_of_both_labels():
    """The reference adds 1e-12 within its logarithms, in float32; here in float64."""
    logits, _ = random_logits()
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    found = 0.25 * (1 - p) ** 2 * -np.log(p + 1e-12)
    want = found - 0.75 * p**2 * -np.log(1 - p + 1e-12)
    np.testing.assert_allclose(focal_cost(logits), want, rtol=1e-5, atol=1e-6)


def test_logits_of_any_size_and_half_the_precision():
    logits = jnp.asarray([-1e30, -200, -20, 0, 20, 200, 1e30], jnp.float32)
    for labels in (True, False):
        for function in (focal_loss, binary_cross_entropy):
            value = function(logits, jnp.asarray(labels))
            slope = jax.vmap(jax.grad(lambda x: function(x, jnp.asarray(labels))))(logits)  # noqa: B023
            assert np.isfinite(value).all() and np.isfinite(slope).all()
    half = logits.astype(jnp.bfloat16)
    assert focal_loss(half, jnp.bool_(True)).dtype == focal_cost(half).dtype == jnp.float32
    np.testing.assert_array_equal(focal_cost(half), focal_cost(half.astype(jnp.float32)))
