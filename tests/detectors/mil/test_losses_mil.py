"""MIL losses against PyTorch on the valid proposals alone, gradients by autograd; extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mining_loops import C, N, images, mist_loop, official_loop, oicr_loop

from weaksam_jax.boxes import encode
from weaksam_jax.detectors.mil import loss as mil

# Options of mil_loss: method, oicr_rule, ignore_below, reduction; columns of WSDDN's two streams.
KINDS = {
    "mist": (("mist", "paper", 0.0, "mean"), C + 1),
    "oicr": (("oicr", "paper", 0.0, "mean"), C + 1),
    "oicr with PCL's band": (("oicr", "paper", 0.1, "mean"), C + 1),
    "official oicr": (("oicr", "official", 0.0, "sum"), C),
    "wsddn": (("wsddn", "paper", 0.0, "sum"), C + 1),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
OPTIONS = "method", "oicr_rule", "ignore_below", "reduction"
VALUE_AND_GRADIENT = jax.jit(
    jax.value_and_grad(mil.mil_loss, has_aux=True), static_argnames=OPTIONS
)


def loss_and_gradient(outputs, boxes, valid, tags, *options):
    """((loss, terms), gradient)."""
    named = dict(zip(OPTIONS, options, strict=True))
    return VALUE_AND_GRADIENT(outputs, boxes, valid, tags, **named)


def random_outputs(seed, columns, scale=2.0):
    rng = np.random.default_rng(seed)
    shapes = [(N, columns), (N, columns), (3, N, C + 1), (3, N, C + 1, 4)]
    return mil.MilOutputs(*(jnp.asarray(rng.normal(size=s) * scale, jnp.float32) for s in shapes))


def torch_loss(outputs, boxes, tags, method, rule, ignore_below, reduction):
    """Float64, valid proposals only, one proposal at a time."""
    cls, det, refine, deltas = outputs
    n, official = len(boxes), rule == "official"
    scores = cls.softmax(1) * det.softmax(0)
    y = torch.zeros(cls.shape[1], dtype=torch.float64)
    y[-C:] = torch.as_tensor(tags).double()
    total = F.binary_cross_entropy(scores.sum(0).clamp(1e-8, 1 - 1e-6), y, reduction=reduction)
    teacher = scores[:, -C:]
    for weight_of_branch, logits, delta in zip((3, 1, 1), refine, deltas, strict=True):
        if method == "wsddn":
            break
        t = teacher.detach().numpy().astype(np.float32)
        loop = mist_loop if method == "mist" else official_loop if official else oicr_loop
        mined = loop(boxes, t, tags, ignore_below=ignore_below)
        for r, (label, weight, target) in enumerate(zip(*mined, strict=True)):
            factor = (1 if official else weight_of_branch) * float(weight) / n
            if official:
                total = total - factor * torch.log(logits.softmax(1)[r, label] + 1e-6)
            else:
                total = total - factor * logits.log_softmax(1)[r, label]
            if label > 0 and method == "mist":
                wanted = torch.as_tensor(encode(np.array(target), boxes[r])).double()
                total = total + factor * F.smooth_l1_loss(delta[r, label], wanted, reduction="sum")
        teacher = logits.softmax(1)[:, 1:]
    return total


@every_kind
@settings(max_examples=15)
@given(image=images(), seed=st.integers(0, 999))
def test_loss_and_gradient_equal_torch_whatever_the_padding(kind, image, seed):
    options, columns = KINDS[kind]
    boxes, valid, _, tags = image
    outputs = random_outputs(seed, columns)
    (loss, terms), gradient = loss_and_gradient(outputs, boxes, valid, tags, *options)
    assert (terms["regress"] > 0) <= (kind == "mist") and (terms["refine"] > 0) <= (kind != "wsddn")
    np.testing.assert_allclose(loss, sum(terms.values()), rtol=1e-6)
    if not valid.any():
        assert loss == 0 and not any(x.any() for x in jax.tree.leaves(gradient))
        return
    rows = [0, 0, 1, 1]  # the axis of the proposals
    ours = [
        torch.tensor(np.compress(valid, x, axis), dtype=torch.float64, requires_grad=True)
        for x, axis in zip(outputs, rows, strict=True)
    ]
    expected = torch_loss(ours, boxes[valid], tags, *options)
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=2e-5)
    for own, theirs, axis in zip(gradient, ours, rows, strict=True):
        wanted = np.zeros(own.shape)
        if theirs.grad is not None:
            np.moveaxis(wanted, axis, 0)[valid] = np.moveaxis(theirs.grad.numpy(), axis, 0)
        np.testing.assert_allclose(own, wanted, atol=2e-6)


def test_the_methods_have_the_terms_they_should():
    boxes = np.tile(np.array([0, 0, 5, 5], np.float32), (N, 1))
    valid, tags = np.ones(N, bool), np.ones(C, bool)
    for kind, (options, columns) in KINDS.items():
        (_, terms), gradient = loss_and_gradient(
            random_outputs(0, columns), boxes, valid, tags, *options
        )
        assert (terms["refine"] > 0) == (kind != "wsddn") and terms["image"] > 0
        assert (terms["regress"] > 0) == (kind == "mist") == bool(gradient.deltas.any())


@every_kind
@pytest.mark.parametrize("case", ["usual", "no tags", "no proposals", "neither"])
@pytest.mark.parametrize(
    ("size", "dtype"), [(1e4, jnp.float32), (1e4, jnp.bfloat16), (1e30, jnp.bfloat16)]
)
def test_extreme_outputs_stay_finite(kind, case, size, dtype):
    options, columns = KINDS[kind]
    rng = np.random.default_rng(5)
    corner = rng.integers(0, 10, (N, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 8, (N, 2))], 1).astype(np.float32)
    valid = np.full(N, case in ("usual", "no tags"))
    tags = np.full(C, case in ("usual", "no proposals"))
    for outputs in (
        random_outputs(6, columns, size),
        jax.tree.map(lambda x: size * jnp.sign(x), random_outputs(7, columns)),
    ):
        outputs = jax.tree.map(lambda x: x.astype(dtype), outputs)
        (loss, _), gradient = loss_and_gradient(outputs, boxes, valid, tags, *options)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, gradient)))
        assert (loss > 0) == (case in ("usual", "no tags")) and loss.dtype == jnp.float32


def test_half_precision_outputs_are_computed_with_in_float32():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_outputs(8, C + 1))
    full = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    boxes = np.tile(np.array([0, 0, 5, 5], np.float32), (N, 1))
    rest = boxes, np.ones(N, bool), np.ones(C, bool), *KINDS["mist"][0]
    (loss, _), gradient = loss_and_gradient(half, *rest)
    (same, _), exact = loss_and_gradient(full, *rest)
    assert loss == same
    for one, other in zip(gradient, exact, strict=True):
        np.testing.assert_array_equal(one, other.astype(jnp.bfloat16))


@pytest.mark.parametrize("sign", [1, -1])
def test_image_loss_near_certainty_equals_float64(sign):
    """Trap: float32(1 - 1e-8) is 1. Scores from 1e-7 to within 1e-5 of 1, on both sides."""
    logit = sign * np.linspace(2, 11.5, 20, dtype=np.float32)
    cls = np.stack([logit, np.zeros_like(logit)], 1)
    valid, tags = np.array([True]), np.array([True, False])

    @jax.jit
    @jax.value_and_grad
    def loss(one):
        scores = mil.wsddn_scores(one[None], jnp.zeros((1, 2)), valid)
        return mil.image_loss(scores, tags, valid)

    for row in cls:
        theirs = torch.tensor(row, dtype=torch.float64, requires_grad=True)
        wanted = F.binary_cross_entropy(theirs.softmax(0), torch.tensor([1.0, 0.0]).double())
        wanted.backward()
        value, gradient = loss(row)
        np.testing.assert_allclose(value, wanted.item(), rtol=1e-2, atol=1e-6)
        np.testing.assert_allclose(gradient, theirs.grad, rtol=2e-2, atol=1e-6)


def test_a_proposal_of_weight_0_adds_nothing_though_its_loss_overflows():
    logits = jnp.asarray([[-3e38, 3e38], [0.0, 0.0]])
    deltas = jnp.asarray([3e38, 1.0])[:, None, None] * jnp.ones((2, 2, 4))
    boxes, valid = jnp.asarray([[0, 0, 4, 4.0]] * 2), jnp.ones(2, bool)

    def total(logits, deltas, label):
        target = mil.MilTargets(jnp.full(2, label), jnp.asarray([0.0, 0.5]), boxes)
        box = mil.regression_loss(deltas, boxes, target, valid)
        return mil.classification_loss(logits, target, valid) + box

    for label, wanted in ((0, np.log(2) / 4), (1, np.log(2) / 4 + 0.5)):
        loss, gradient = jax.value_and_grad(total, (0, 1))(logits, deltas, label)
        np.testing.assert_allclose(loss, wanted, rtol=1e-6)
        assert all(np.isfinite(x).all() and not x[0].any() for x in gradient)
