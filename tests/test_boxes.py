"""The box convention against independent loops, in NumPy and in JAX."""

import bridge.runtime.torchvision_ops  # noqa: F401

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss

from weaksam_jax import boxes as B

# Multiples of 1/8 pixel: exact in float32, so the loop form has no other rounding.
side = st.integers(0, 512).map(lambda eighths: eighths / 8)
box = st.tuples(side, side, side, side).map(
    lambda s: [min(s[0], s[2]), min(s[1], s[3]), max(s[0], s[2]), max(s[1], s[3])]
)


def loop_iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0


@pytest.mark.parametrize("xp", [np, jnp])
@settings(deadline=None)
@given(a=st.lists(box, min_size=1, max_size=4), b=st.lists(box, min_size=1, max_size=4))
def test_iou_is_the_loop_form(xp, a, b):
    got = np.asarray(B.iou(xp.asarray(a, dtype=xp.float32), xp.asarray(b, dtype=xp.float32)))
    want = [[loop_iou(np.float64(x), np.float64(y)) for y in b] for x in a]
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_iou_counts_pixels():
    """With continuous coordinates the IoU of integer boxes is a ratio of pixel counts."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        corners = np.sort(rng.integers(0, 20, (2, 2, 2)), axis=1)
        masks = []
        for (x1, y1), (x2, y2) in corners:
            mask = np.zeros((20, 20), bool)
            mask[y1:y2, x1:x2] = True
            masks.append(mask)
        a, b = corners.reshape(2, 1, 4).astype(np.float32)
        union = (masks[0] | masks[1]).sum()
        want = (masks[0] & masks[1]).sum() / union if union else 0.0
        assert B.iou(a, b)[0, 0] == pytest.approx(want, abs=1e-6)
        own = masks[0].sum()
        assert B.containment(a, b)[0, 0] == pytest.approx(
            (masks[0] & masks[1]).sum() / own if own else 0.0, abs=1e-6
        )


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("weights", [B.HEAD_WEIGHTS, B.RPN_WEIGHTS])
def test_decode_inverts_encode(xp, weights):
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 50, (2, 30, 2))
    both = np.concatenate([corner, corner + rng.uniform(1, 40, (2, 30, 2))], -1).astype(np.float32)
    target, reference = xp.asarray(both[0]), xp.asarray(both[1])
    deltas = B.encode(target, reference, weights)
    np.testing.assert_allclose(B.decode(deltas, reference, weights), target, atol=1e-3)
    # R-CNN appendix C, written out for one box
    (x1, y1, x2, y2), (u1, v1, u2, v2) = both[0][0], both[1][0]
    want = [
        ((x1 + x2) / 2 - (u1 + u2) / 2) / (u2 - u1) * weights[0],
        ((y1 + y2) / 2 - (v1 + v2) / 2) / (v2 - v1) * weights[1],
        np.log((x2 - x1) / (u2 - u1)) * weights[2],
        np.log((y2 - y1) / (v2 - v1)) * weights[3],
    ]
    np.testing.assert_allclose(deltas[0], want, atol=1e-4)


def test_encode_of_padding_is_finite():
    assert np.isfinite(B.encode(np.zeros((3, 4), np.float32), np.zeros((3, 4), np.float32))).all()


def test_flip_is_the_mirror_of_pixels():
    mask = np.zeros((6, 10), bool)
    mask[1:4, 2:7] = True
    flipped = mask[:, ::-1]
    columns = np.flatnonzero(flipped.any(0))
    got = B.flip(np.asarray([[2, 1, 7, 4]], np.float32), 10)[0]
    assert got.tolist() == [columns[0], 1, columns[-1] + 1, 4]


def test_clip_and_xywh():
    boxes = np.asarray([[-3, 2, 12, 30]], np.float32)
    assert B.clip(boxes, 10, 20).tolist() == [[0, 2, 10, 20]]
    np.testing.assert_array_equal(B.from_xywh(B.to_xywh(boxes)), boxes)


def test_centres_and_sides():
    boxes = np.asarray([[-3, 2, 12, 30], [5, 5, 5, 5]], np.float32)
    want = box_convert(torch.from_numpy(boxes), "xyxy", "cxcywh")
    for xp in (np, jnp):
        np.testing.assert_array_equal(B.to_cxcywh(xp.asarray(boxes)), want)
        np.testing.assert_array_equal(B.from_cxcywh(B.to_cxcywh(xp.asarray(boxes))), boxes)


def pairs_of_boxes():
    """Some apart, some within one another."""
    rng = np.random.default_rng(2)
    corner = rng.uniform(0, 30, (2, 40, 2))
    both = np.concatenate([corner, corner + rng.uniform(1, 40, corner.shape)], -1)
    return both.astype(np.float32)


@pytest.mark.parametrize("xp", [np, jnp])
def test_giou_of_all_pairs_is_torchvisions(xp):
    a, b = pairs_of_boxes()
    got = B.paired_giou(xp.asarray(a)[:, None], xp.asarray(b)[None])
    want = generalized_box_iou(*map(torch.from_numpy, (a, b))).numpy()
    assert want.min() < -0.3 and want.max() > 0.5
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_the_gradient_of_giou_is_torchvisions():
    a, b = pairs_of_boxes()
    theirs = torch.from_numpy(a).requires_grad_()
    generalized_box_iou_loss(theirs, torch.from_numpy(b), reduction="sum").backward()
    ours = jax.grad(lambda a: jnp.sum(1 - B.paired_giou(a, jnp.asarray(b))))(jnp.asarray(a))
    np.testing.assert_allclose(ours, theirs.grad, atol=1e-5)


def test_giou_of_boxes_without_area_is_finite():
    """A point within a box: the box is the hull. A point with itself: 0 of nothing."""
    a = jnp.asarray([[1.0, 1, 1, 1], [2, 2, 2, 2], [0, 0, 4, 4]])
    b = jnp.asarray([[0.0, 0, 4, 4], [2, 2, 2, 2], [8, 0, 8, 4]])
    assert B.paired_giou(a, b).tolist() == [0.0, 0.0, pytest.approx(-0.5)]
    slope = jax.grad(lambda a: jnp.sum(B.paired_giou(a, b)))(a)
    assert np.isfinite(slope).all()
