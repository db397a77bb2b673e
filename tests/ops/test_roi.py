"""RoI ops against loops written from the papers' definitions and torch autograd."""

import functools
import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from weaksam_jax.ops.matching import pyramid_level
from weaksam_jax.ops.roi import roi_align, roi_align_pyramid, roi_pool


def caffe_pool(features, boxes, scale, size):
    """Fast R-CNN's RoIPool, one bin at a time: (values, gradient of sum(values * weights))."""
    height, width, channels = features.shape
    out = np.zeros((len(boxes), size, size, channels), features.dtype)
    where = np.full((*out.shape, 2), -1)
    for r, box in enumerate(boxes):
        x1, y1, x2, y2 = (math.floor(v * scale + 0.5) for v in box)
        w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        for i in range(size):
            rows = range(
                min(max(y1 + (i * h) // size, 0), height),
                min(max(y1 + -((-(i + 1) * h) // size), 0), height),
            )
            for j in range(size):
                columns = range(
                    min(max(x1 + (j * w) // size, 0), width),
                    min(max(x1 + -((-(j + 1) * w) // size), 0), width),
                )
                for c in range(channels):
                    cells = [(y, x) for y in rows for x in columns]
                    if cells:
                        best = max(cells, key=lambda cell: features[cell[0], cell[1], c])
                        out[r, i, j, c], where[r, i, j, c] = features[(*best, c)], best
    return out, where


def some_boxes(rng, count, height, width):
    corner = rng.uniform(-10, [width, height], (count, 2))
    size = rng.uniform(0, [width, height], (count, 2)) * rng.choice([0.1, 1.0], (count, 1))
    boxes = np.concatenate([corner, corner + size], 1)
    boxes[0] = 0  # padding
    boxes[1] = [5, 5, 6, 6]  # one pixel
    boxes[2] = [0, 0, width, height]
    boxes[3] = [width - 1, height - 1, width + 30, height + 30]
    boxes[4] = [width + 50, height + 50, width + 90, height + 90]  # wholly outside
    boxes[5] = [-90, -90, -50, -50]
    boxes[6] = [4, 4, 12, 20]  # exactly half cells at stride 8
    return boxes.astype(np.float32)


# Quarters of a cell at stride 8 in and around a map of 6x7 cells: half cells, boxes of no or one
# pixel, inverted boxes, boxes over the border and wholly outside.
HEIGHT, WIDTH, COUNT = 6, 7, 6
drawn_boxes = hnp.arrays(
    np.float32,
    (COUNT, 4),
    elements=st.integers(-12, 4 * WIDTH + 12).map(lambda quarters: quarters * 2),
    fill=st.nothing(),
)
# Few values, so that maxima are shared, and all negative in half of the maps.
drawn_maps = st.builds(
    lambda values, shift: values.astype(np.float32) - shift,
    hnp.arrays(np.int32, (HEIGHT, WIDTH, 2), elements=st.integers(0, 4), fill=st.nothing()),
    st.sampled_from([2, 10]),
)


def hold_against_caffe(features, boxes, scale, size):
    """Values and the gradient of a weighted sum; returns which bins are empty."""
    expected, where = caffe_pool(features, boxes, scale, size)
    weights = np.linspace(-1, 1, expected.size, dtype=np.float32).reshape(expected.shape)
    value, ours = POOL(features, boxes, weights, scale, size)
    np.testing.assert_array_equal(value, expected)
    empty = where[..., 0] == -1
    assert not expected[empty].any()
    gradient = np.zeros_like(features)
    for index in np.argwhere(~empty):
        y, x = where[tuple(index)]
        gradient[y, x, index[3]] += weights[tuple(index)]
    np.testing.assert_allclose(ours, gradient, atol=1e-4)
    return empty


@functools.partial(jax.jit, static_argnums=(3, 4))
def POOL(features, boxes, weights, scale, size):
    value, pullback = jax.vjp(lambda f: roi_pool(f, boxes, scale, size), features)
    return value, pullback(weights)[0]


@pytest.mark.parametrize(
    ("size", "scale", "rectified"), [(7, 1 / 8, False), (7, 1 / 4, True), (3, 1 / 16, False)]
)
def test_roi_pool_and_its_gradient_equal_the_caffe_loop(size, scale, rectified):
    rng = np.random.default_rng(size)
    height, width = 11, 14
    features = rng.normal(size=(height, width, 3)).astype(np.float32) - 1
    if rectified:
        features = np.maximum(features, 0)  # many equal values: the first maximum must win
    boxes = some_boxes(rng, 24, height / scale, width / scale)
    assert hold_against_caffe(features, boxes, scale, size).any()


@settings(max_examples=60)
@given(features=drawn_maps, boxes=drawn_boxes)
def test_roi_pool_equals_the_caffe_loop_on_drawn_boxes(features, boxes):
    hold_against_caffe(features, boxes, 1 / 8, 3)


@pytest.mark.parametrize("pool", [roi_pool, functools.partial(roi_align, sampling_ratio=1)])
def test_no_boxes_give_no_rows_and_no_gradient(pool):
    value, pullback = jax.vjp(lambda f: pool(f, jnp.zeros((0, 4)), 1 / 8), jnp.ones((5, 6, 2)))
    assert value.shape == (0, 7, 7, 2)
    assert not pullback(value)[0].any()


@pytest.mark.parametrize("pool", [roi_pool, functools.partial(roi_align, chunk=0)])
def test_half_precision_gradients_of_many_boxes_add_up(pool):
    """A sum of ones in bfloat16 stops at 256."""
    boxes = jnp.tile(jnp.asarray([[0.0, 0.0, 24.0, 24.0]]), (1000, 1))
    maps = jnp.ones((3, 3, 1))

    def gradient(dtype):
        total = jax.jit(jax.grad(lambda f: pool(f, boxes, 1 / 8, 3).astype(jnp.float32).sum()))
        return total(maps.astype(dtype))

    half = gradient(jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), gradient(jnp.float32), rtol=2**-7)


def test_roi_pool_gradient_by_finite_differences_under_vmap_and_jit():
    rng = np.random.default_rng(0)
    features = rng.permutation(2 * 6 * 7 * 2).reshape(2, 6, 7, 2).astype(np.float32)
    boxes = jnp.asarray(np.stack([some_boxes(rng, 9, 48, 56) for _ in range(2)]))
    weights = rng.normal(size=(2, 9, 3, 3, 2)).astype(np.float32)

    @jax.jit
    def loss(f):
        return jnp.sum(jax.vmap(lambda one, b: roi_pool(one, b, 1 / 8, 3))(f, boxes) * weights)

    gradient = jax.grad(loss)(features)
    for index in [(0, 0, 0, 0), (0, 5, 6, 1), (1, 3, 3, 0), (1, 0, 6, 1), (1, 2, 1, 1)]:
        moved = features.copy()
        moved[index] += 0.25
        difference = (loss(moved) - loss(features)) / 0.25
        np.testing.assert_allclose(gradient[index], difference, atol=2e-3)


def torch_align(features, boxes, scale, size, ratio, aligned):
    """torchvision's RoIAlign written out in torch, one sample at a time (features `[H, W, C]`)."""
    height, width, channels = features.shape
    rows = []
    for box in boxes * scale - (0.5 if aligned else 0.0):
        w, h = box[2] - box[0], box[3] - box[1]
        if not aligned:
            w, h = max(w, 1.0), max(h, 1.0)
        for i in range(size):
            for j in range(size):
                total = features[0, 0] * 0
                for a in range(ratio):
                    for b in range(ratio):
                        y = box[1] + (i + (a + 0.5) / ratio) * h / size
                        x = box[0] + (j + (b + 0.5) / ratio) * w / size
                        if y < -1 or y > height or x < -1 or x > width:
                            continue
                        y, x = max(float(y), 0.0), max(float(x), 0.0)
                        y1, x1 = min(int(y), height - 1), min(int(x), width - 1)
                        y2, x2 = min(y1 + 1, height - 1), min(x1 + 1, width - 1)
                        fy = 0.0 if y1 >= height - 1 else y - y1
                        fx = 0.0 if x1 >= width - 1 else x - x1
                        total = (
                            total
                            + (1 - fy) * (1 - fx) * features[y1, x1]
                            + (1 - fy) * fx * features[y1, x2]
                            + fy * (1 - fx) * features[y2, x1]
                            + fy * fx * features[y2, x2]
                        )
                rows.append(total / ratio**2)
    return torch.stack(rows).reshape(len(boxes), size, size, channels)


def hold_against_torch(features, boxes, size, ratio, aligned, chunk):
    reference = torch.tensor(features, dtype=torch.float64, requires_grad=True)
    expected = torch_align(reference, boxes.astype(np.float64), 1 / 8, size, ratio, aligned)
    weights = np.linspace(-1, 1, expected.numel()).reshape(expected.shape)
    (expected * torch.tensor(weights)).sum().backward()
    value, gradient = ALIGN(
        features, boxes, weights.astype(np.float32), size, ratio, aligned, chunk
    )
    np.testing.assert_allclose(value, expected.detach().numpy(), atol=2e-5)
    np.testing.assert_allclose(gradient, reference.grad.numpy(), atol=2e-4)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def ALIGN(features, boxes, weights, *options):
    value, pullback = jax.vjp(lambda f: roi_align(f, boxes, 1 / 8, *options), features)
    return value, pullback(weights)[0]


@pytest.mark.parametrize(
    ("aligned", "ratio", "size", "chunk"), [(True, 2, 7, 4), (False, 2, 3, 0), (True, 1, 4, 32)]
)
def test_roi_align_and_its_gradient_equal_torchvisions_formula(aligned, ratio, size, chunk):
    rng = np.random.default_rng(ratio)
    features = rng.normal(size=(9, 12, 2)).astype(np.float32)
    hold_against_torch(features, some_boxes(rng, 10, 72, 96), size, ratio, aligned, chunk)


@pytest.mark.parametrize("aligned", [True, False])
@settings(max_examples=20)
@given(features=drawn_maps, boxes=drawn_boxes)
def test_roi_align_equals_torchvisions_formula_on_drawn_boxes(aligned, features, boxes):
    hold_against_torch(features, boxes, 3, 2, aligned, 0)


def test_pyramid_reads_each_box_from_its_level():
    rng = np.random.default_rng(3)
    levels = [rng.normal(size=(s, s + 2, 5)).astype(np.float32) for s in (16, 8, 4)]
    boxes = jnp.asarray(some_boxes(rng, 21, 128, 144))
    level = jnp.asarray(rng.integers(0, 3, 21), jnp.int32)
    weights = rng.normal(size=(21, 7, 7, 5)).astype(np.float32)

    def pooled(maps):
        return roi_align_pyramid(maps, (8, 16, 32), boxes, level, chunk=8)

    def separate(maps):
        each = jnp.stack(
            [roi_align(m, boxes, 1 / s) for m, s in zip(maps, (8, 16, 32), strict=True)]
        )
        return each[level, jnp.arange(21)]

    np.testing.assert_allclose(pooled(levels), separate(levels), atol=1e-5)
    ours = jax.grad(lambda maps: jnp.sum(pooled(maps) * weights))(levels)
    theirs = jax.grad(lambda maps: jnp.sum(separate(maps) * weights))(levels)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def adaptive_align(features, box, stride, size=7):
    """detectron2's aligned RoIAlign with sampling_ratio 0, one sample at a time: a cell of
    `size`² has ceil(side / size) samples along each side, sides in cells of the map."""
    height, width, channels = features.shape
    x1, y1, x2, y2 = box.astype(np.float64) / stride - 0.5
    rows, columns = math.ceil((y2 - y1) / size), math.ceil((x2 - x1) / size)
    out = np.zeros((size, size, channels))
    for i, j, a, b in np.ndindex(size, size, rows, columns):
        y = y1 + (i + (a + 0.5) / rows) * (y2 - y1) / size
        x = x1 + (j + (b + 0.5) / columns) * (x2 - x1) / size
        if not (-1 <= y <= height and -1 <= x <= width):
            continue
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        top, left = min(int(y), height - 2), min(int(x), width - 2)
        v, u = np.array([1 - y + top, y - top]), np.array([1 - x + left, x - left])
        out[i, j] += np.einsum("i,j,ijc", v, u, features[top : top + 2, left : left + 2])
    return out / (rows * columns)


def test_two_samples_are_close_to_detectron2s_adaptive_number():
    """RoIs of 20 to 200 pixels at their levels, on smooth maps of standard deviation 1 (white noise
    under a Gaussian of 1.5 cells): see the figures in `roi_align_pyramid`."""
    rng, extent, strides = np.random.default_rng(0), 320, (4, 8)
    maps = []
    for stride in strides:
        noise = rng.normal(size=(extent // stride, extent // stride, 4))
        smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
        maps.append((smooth / smooth.std()).astype(np.float32))
    sides = np.linspace(20, 200, 40)[:, None] * rng.uniform(0.8, 1.25, (40, 2))
    sides = sides.clip(20, 200)
    corner = rng.uniform(0, extent - sides)
    boxes = np.concatenate([corner, corner + sides], 1).astype(np.float32)
    level = np.asarray(pyramid_level(boxes, 2))
    assert min(np.bincount(level)) > 10
    expected = [
        adaptive_align(maps[k], box, strides[k]) for box, k in zip(boxes, level, strict=True)
    ]

    def difference(**options):
        return np.abs(
            roi_align_pyramid(maps, strides, boxes, level, **options) - np.stack(expected)
        )

    ours = difference()
    assert ours.mean() < 0.03 and ours.max() < 0.25
    for wrong in (difference(sampling_ratio=1), difference(aligned=False)):
        assert wrong.mean() > 0.08 and wrong.max() > 0.5
    cells = sides / np.asarray(strides)[level][:, None]
    two = ((cells > 7.01) & (cells < 13.99)).all(1)  # detectron2 takes two samples there
    assert two.sum() >= 5
    assert ours[two].max() < 1e-4 < 1e-3 < ours[~two].max()


def test_adaptive_sampling_is_refused():
    with pytest.raises(ValueError, match="sampling_ratio"):
        roi_align(jnp.zeros((4, 4, 1)), jnp.zeros((1, 4)), 1.0, sampling_ratio=0)


@pytest.mark.parametrize("seed", range(8))
def test_exact_bins_equal_mmcvs_loop(seed):
    """RoIPool without rounding: corners in cells as they are; empty and outside bins are 0."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(9, 11, 3)).astype(np.float32) - 2  # mostly negative
    corner = rng.uniform(-10, 80, (12, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(-5, 60, (12, 2))], 1).astype(np.float32)
    expected = np.zeros((12, 3, 3, 3), np.float32)
    for r, (x1, y1, x2, y2) in enumerate(boxes.astype(np.float64) / 8):
        for i in range(3):
            for j in range(3):
                top, bottom = y1 + i * (y2 - y1) / 3, y1 + (i + 1) * (y2 - y1) / 3
                left, right = x1 + j * (x2 - x1) / 3, x1 + (j + 1) * (x2 - x1) / 3
                rows = slice(*np.clip([np.floor(top), np.ceil(bottom)], 0, 9).astype(int))
                columns = slice(*np.clip([np.floor(left), np.ceil(right)], 0, 11).astype(int))
                cells = features[rows, columns].reshape(-1, 3)
                if len(cells) and x2 > x1 and y2 > y1:
                    expected[r, i, j] = cells.max(0)
    found = roi_pool(features, boxes, 1 / 8, 3, rounded=False)
    np.testing.assert_array_equal(found, expected)
