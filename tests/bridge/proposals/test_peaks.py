"""Peak points against the paper's O(n^2) form, written out with loops."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.proposals.peaks import peak_points


def loop_peaks(one, kernel, threshold, max_peaks):
    """Algorithm 1 with the official code's order: 2-D windows, 25 best, delete near points."""
    height, width = one.shape
    half = (kernel - 1) // 2
    peaks = []
    for y in range(height):
        for x in range(width):
            window = one[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
            if one[y, x] == window.max():
                peaks.append((x, y, one[y, x]))
    peaks.sort(key=lambda point: -point[2])  # stable: ties stay in raster order
    peaks = peaks[:max_peaks]
    deleted = set()
    for i, (x, y, value) in enumerate(peaks):
        if i in deleted:
            continue
        if value < threshold:
            deleted.add(i)
            continue
        for j in range(i + 1, len(peaks)):
            if abs(peaks[j][0] - x) + abs(peaks[j][1] - y) < half:
                deleted.add(j)
    return np.array([p for i, p in enumerate(peaks) if i not in deleted]).reshape(-1, 3)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(2, 24), st.integers(2, 24)),
    kernel=st.sampled_from([1, 3, 5, 9, 17, 129]),
    levels=st.sampled_from([2, 4, 12, 10**6]),
    threshold=st.sampled_from([0.1, 0.5, 0.9]),
    cap=st.sampled_from([1, 5, 25]),
)
def test_equals_the_loop_form(seed, size, kernel, levels, threshold, cap):
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, levels + 1, (3, *size)).astype(np.float32) / levels
    for one, points in zip(maps, peak_points(maps, kernel, threshold, cap), strict=True):
        if one.min() < one.max():
            np.testing.assert_array_equal(points, loop_peaks(one, kernel, threshold, cap))
        else:
            assert len(points) == 0


def test_keeps_the_type_of_doubles():
    one = np.random.default_rng(0).random((1, 20, 20))
    (points,) = peak_points(one, 5, 0.5)
    assert points.dtype == np.float64
    np.testing.assert_array_equal(points, loop_peaks(one[0], 5, 0.5, 25))


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_flat_maps_have_no_peaks(value):
    points = peak_points(np.full((2, 30, 40), value, np.float32), 17, 0.9)
    assert [p.shape for p in points] == [(0, 3), (0, 3)]


def test_nan_pixels_neither_are_nor_hide_peaks():
    one = np.zeros((1, 20, 20), np.float32)
    one[0, 4, 7] = 0.95
    one[0, 4, 8] = np.nan
    np.testing.assert_array_equal(
        peak_points(one, 5, 0.9)[0], np.float32([[7, 4, np.float32(0.95)]])
    )


def test_bad_arguments():
    for kernel in (0, 2, 128, -3):
        with pytest.raises(ValueError, match="odd"):
            peak_points(np.zeros((1, 4, 4)), kernel, 0.9)
    with pytest.raises(ValueError, match=r"\[M, H, W\]"):
        peak_points(np.zeros((4, 4)), 3, 0.9)
    assert peak_points(np.zeros((0, 4, 4)), 3, 0.9) == []


def test_at_least_fifty_times_faster_than_the_loop():
    rng = np.random.default_rng(0)
    maps = np.kron(rng.random((4, 20, 24)), np.ones((1, 5, 5))).astype(np.float32)
    maps += rng.random(maps.shape).astype(np.float32) * 0.01
    began = time.perf_counter()
    expected = [loop_peaks(one, 17, 0.9, 25) for one in maps]
    loop = time.perf_counter() - began
    fast = np.inf
    for _ in range(5):
        began = time.perf_counter()
        points = peak_points(maps, 17, 0.9)
        fast = min(fast, time.perf_counter() - began)
    for a, b in zip(points, expected, strict=True):
        np.testing.assert_allclose(a, b)
    assert loop > 50 * fast, (loop, fast)
