"""Maxima of bins against a NumPy loop: ties, empty bins, any size; and what the program is."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from weaksam_jax.ops import bins
from weaksam_jax.ops.roi import roi_pool

HEIGHT, WIDTH, CHANNELS, BOXES = 6, 9, 2, 3


def loop(features, rows, columns):
    """(maxima, cell of each in row-major order or -1)."""
    width, channels = features.shape[1:]
    shape = (rows.shape[1], rows.shape[2], columns.shape[2], channels)
    out, where = np.zeros(shape, features.dtype), np.full(shape, -1)
    for r, i, j, c in np.ndindex(shape):
        ys, xs = range(*rows[:, r, i]), range(*columns[:, r, j])
        cells = [(y, x) for y in ys for x in xs]
        if cells:
            best = max(cells, key=lambda cell: features[cell[0], cell[1], c])
            out[r, i, j, c], where[r, i, j, c] = features[(*best, c)], best[0] * width + best[1]
    return out, where


def edges(side, count):
    """First and one-past-last cells `[2, BOXES, count]` within a side, some intervals empty."""
    shape = (2, BOXES, count)
    return hnp.arrays(np.int32, shape, elements=st.integers(0, side), fill=st.nothing())


# Few values, so that maxima are shared.
maps = hnp.arrays(
    np.int32, (HEIGHT, WIDTH, CHANNELS), elements=st.integers(-2, 1), fill=st.nothing()
)


@functools.partial(jax.jit, static_argnums=(4,))
def run(features, rows, columns, weights, usual):
    value, pullback = jax.vjp(lambda f: bins.max_of_bins(f, rows, columns, usual), features)
    return value, pullback(weights)[0]


@pytest.mark.parametrize("usual", [(HEIGHT, WIDTH), (3, 5), (1, 1)])
@settings(max_examples=25)
@given(features=maps, rows=edges(HEIGHT, 2), columns=edges(WIDTH, 3))
def test_maxima_and_gradients_equal_the_loop(usual, features, rows, columns):
    """Bins longer than usual too, and those that end before they begin."""
    features = features.astype(np.float32)
    expected, where = loop(features, rows, columns)
    weights = np.random.default_rng(0).integers(-4, 5, expected.shape).astype(np.float32)
    value, gradient = run(features, rows, columns, weights, usual)
    np.testing.assert_array_equal(value, expected)
    added = np.zeros((HEIGHT * WIDTH, CHANNELS), np.float32)
    for index in np.argwhere(where >= 0):
        added[where[tuple(index)], index[3]] += weights[tuple(index)]
    np.testing.assert_array_equal(gradient, added.reshape(features.shape))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_channels_in_parts_are_those_of_the_whole(monkeypatch, dtype):
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(HEIGHT, WIDTH, 7)), dtype)
    rows = np.sort(rng.integers(0, HEIGHT + 1, (2, BOXES, 2)), axis=0)
    columns = np.sort(rng.integers(0, WIDTH + 1, (2, BOXES, 2)), axis=0)
    weights = jnp.asarray(rng.integers(-4, 5, (BOXES, 2, 2, 7)), dtype)
    run.clear_cache()
    whole = run(features, rows, columns, weights, (4, 4))
    monkeypatch.setattr(bins, "PART", 3)
    run.clear_cache()
    parts = run(features, rows, columns, weights, (4, 4))
    assert whole[0].dtype == whole[1].dtype == dtype
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=30)
@given(
    cells=hnp.arrays(np.int32, (5, 2, 2, 3), elements=st.integers(0, HEIGHT * WIDTH - 1)),
    seed=st.integers(0, 9),
)
def test_both_forms_of_the_gradient_equal_a_loop(cells, seed):
    """The products of TPUs, and the scatter of the others."""
    gradient = np.random.default_rng(seed).integers(-9, 10, cells.shape).astype(np.float32)
    expected = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for index in np.ndindex(cells.shape):
        y, x = divmod(cells[index], WIDTH)
        expected[y, x, index[-1]] += gradient[index]
    for form in (SCATTERED, MULTIPLIED):
        for size in (HEIGHT, 300):  # of 16 and of 32 bits
            packed = np.asarray(bins._cells(size, WIDTH))[cells // WIDTH, cells % WIDTH]
            np.testing.assert_array_equal(form(gradient, packed), expected)


SCATTERED, MULTIPLIED = (
    jax.jit(functools.partial(form, side=(HEIGHT, WIDTH)))
    for form in (bins._scattered, bins._multiplied)
)


@pytest.mark.parametrize(("height", "width"), [(30, 40), (61, 83), (150, 250)])
def test_boxes_of_a_map_need_four_windows_and_larger_ones_a_bounded_number(height, width):
    """So the loop over further windows has no turn for a box of the image, whatever its size, and
    otherwise a number that does not grow with the map."""
    from weaksam_jax.ops.roi import _bin_edges

    usual = bins_of(height, width)
    for side, most in zip((height, width), usual, strict=True):
        low, high = (x.reshape(-1) for x in np.mgrid[0 : side + 1, 0 : side + 1])
        inside = _bin_edges(low[low <= high], high[low <= high], 7, side)
        levels = bins._levels(most, side)
        assert bins._windows(inside, bins._level(inside, levels)) <= 2
        whole = _bin_edges(np.array([-9 * side]), np.array([10 * side]), 7, side)
        assert bins._windows(whole, bins._level(whole, levels)) <= 15


def bins_of(height, width):
    return tuple(-(-(side + 1) // 7) + 1 for side in (height, width))


def test_the_program_has_no_loop_sort_or_scatter_on_a_tpu():
    """Lowered for a TPU: one loop over further windows (see above) and none over cells."""

    def grad(features, boxes):
        return jax.grad(lambda f: roi_pool(f, boxes, 1 / 8).sum())(features)

    shapes = (
        jax.ShapeDtypeStruct((40, 50, 64), jnp.float32),
        jax.ShapeDtypeStruct((30, 4), jnp.float32),
    )
    text = jax.jit(grad).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
    counts = {name: len(re.findall(rf"stablehlo\.{name}\b", text)) for name in ("while", "sort")}
    assert counts == {"while": 1, "sort": 0}
    assert "stablehlo.scatter" not in text
