"""The box coder against PyTorch, one box at a time, gradients by autograd."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from weaksam_jax import boxes as B

COUNT, SIDE = 8, 64
corner = hnp.arrays(np.float32, (COUNT, 2), elements=st.integers(0, SIDE - 1), fill=st.nothing())
size = hnp.arrays(np.float32, (COUNT, 2), elements=st.sampled_from([1, 2, 17, SIDE]))
# Boxes of one pixel and boxes at the border of the image are common.
some_boxes = st.builds(lambda c, s: np.concatenate([c, np.minimum(c + s, SIDE)], 1), corner, size)
some_deltas = hnp.arrays(
    np.float32, (COUNT, 4), elements=st.floats(-30, 30, width=32), fill=st.nothing()
)
both_weights = pytest.mark.parametrize("weights", [B.HEAD_WEIGHTS, B.RPN_WEIGHTS])


def encode_one(target, reference, weights):
    width, height = reference[2] - reference[0], reference[3] - reference[1]
    shift_x = (target[0] + target[2]) / 2 - (reference[0] + reference[2]) / 2
    shift_y = (target[1] + target[3]) / 2 - (reference[1] + reference[3]) / 2
    return [
        weights[0] * shift_x / width,
        weights[1] * shift_y / height,
        weights[2] * torch.log((target[2] - target[0]) / width),
        weights[3] * torch.log((target[3] - target[1]) / height),
    ]


def decode_one(delta, reference, weights):
    width, height = reference[2] - reference[0], reference[3] - reference[1]
    x = (reference[0] + reference[2]) / 2 + delta[0] / weights[0] * width
    y = (reference[1] + reference[3]) / 2 + delta[1] / weights[1] * height
    limit = math.log(1000 / 16)
    width = width * torch.exp(torch.clamp(delta[2] / weights[2], max=limit))
    height = height * torch.exp(torch.clamp(delta[3] / weights[3], max=limit))
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def agree(ours, loop, first, second, weights):
    """Values, and gradients to both arguments of a weighted sum."""
    factor = np.linspace(-1, 1, first.size, dtype=np.float32).reshape(first.shape)
    value, pullback = jax.vjp(
        lambda a, b: ours(a, b, weights), jnp.asarray(first), jnp.asarray(second)
    )
    a, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (first, second))
    wanted = torch.stack([torch.stack(loop(x, y, weights)) for x, y in zip(a, b, strict=True)])
    (wanted * torch.as_tensor(factor)).sum().backward()
    np.testing.assert_allclose(value, wanted.detach(), rtol=1e-5, atol=1e-3)
    for gradient, one in zip(pullback(jnp.asarray(factor)), (a, b), strict=True):
        np.testing.assert_allclose(gradient, one.grad, rtol=1e-4, atol=1e-3)


@both_weights
@given(target=some_boxes, reference=some_boxes)
def test_encode_and_its_gradient(weights, target, reference):
    agree(B.encode, encode_one, target, reference, weights)


@both_weights
@given(deltas=some_deltas, reference=some_boxes)
def test_decode_and_its_gradient_with_clamped_growth(weights, deltas, reference):
    agree(B.decode, decode_one, deltas, reference, weights)


def test_padding_and_huge_deltas_have_finite_gradients():
    nothing = jnp.zeros((3, 4))
    whole = jnp.asarray([[0, 0, 50, 40.0]] * 3)
    huge = jnp.asarray([[1e4] * 4, [-1e4] * 4, [0, 0, 3e4, -3e4]])
    for function, first, second in (
        (B.encode, nothing, nothing),
        (B.encode, whole, nothing),
        (B.decode, huge, whole),
        (B.decode, huge, nothing),
    ):
        value, pullback = jax.vjp(function, first, second)
        results = value, pullback(jnp.ones_like(value))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))
