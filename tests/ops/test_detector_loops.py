"""Anchors, box coder, matcher and NMS against loops written out, on random cases."""

import math

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from weaksam_jax.boxes import HEAD_WEIGHTS, RPN_WEIGHTS, decode, encode
from weaksam_jax.ops.anchors import pyramid_anchors
from weaksam_jax.ops.matching import match_by_iou
from weaksam_jax.ops.nms import dense_nms, nms

# Whole pixels of a small square: many ties, equal and empty boxes, IoUs exactly at a threshold.
corner, side = st.integers(0, 12), st.integers(0, 8)
box = st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
boxes = st.lists(box, min_size=1, max_size=12)
targets = st.lists(box, max_size=4)
ROWS, TARGETS = 12, 4  # one shape, so one program: the rest is padding


def loop_iou(a, b):
    both = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return np.float32(both) / np.float32(union) if union else np.float32(0)


def pad(rows, count):
    """(boxes `[count, 4]`, valid). The padding repeats the last box: it must not count."""
    padded = np.zeros((count, 4), np.float32)
    padded[: len(rows)] = np.reshape(rows, (-1, 4))
    if len(rows):
        padded[len(rows) :] = rows[-1]
    return padded, np.arange(count) < len(rows)


@settings(max_examples=40)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
    ratios=st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0]), min_size=1, max_size=3),
    per_level=st.integers(1, 2),
    rounded=st.booleans(),
)
def test_anchors(shapes, ratios, per_level, rounded):
    strides = [4 * 2**level for level in range(len(shapes))]
    sizes = [[8.0 * stride * (1 + k) for k in range(per_level)] for stride in strides]
    found = pyramid_anchors(shapes, strides, sizes, ratios, rounded=rounded)
    for level, (height, width) in enumerate(shapes):
        expected, steps = [], (strides[level], strides[level])
        if rounded:  # torchvision divides the padded sides by the map's
            steps = shapes[0][0] * 4 // height, shapes[0][1] * 4 // width
        for row in range(height):
            for column in range(width):
                for size in sizes[level]:
                    for ratio in ratios:
                        w, h = size / math.sqrt(ratio), size * math.sqrt(ratio)
                        x, y = column * steps[1], row * steps[0]
                        half = [round(w / 2), round(h / 2)] if rounded else [w / 2, h / 2]
                        expected.append([x - half[0], y - half[1], x + half[0], y + half[1]])
        np.testing.assert_allclose(found[level], expected, rtol=1e-6, atol=1e-4)


number = st.floats(-6, 6, width=32)


@settings(max_examples=60)
@given(
    reference=st.tuples(*[st.floats(0, 500, width=32)] * 2, *[st.floats(1, 300, width=32)] * 2),
    deltas=st.tuples(number, number, number, number),
    weights=st.sampled_from([HEAD_WEIGHTS, RPN_WEIGHTS]),
)
@example(reference=(0.0, 0.0, 10.0, 20.0), deltas=(0.0, 0.0, 6.0, 6.0), weights=RPN_WEIGHTS)
def test_box_coder(reference, deltas, weights):
    x, y, w, h = map(float, reference)
    dx, dy, dw, dh = (float(d) / k for d, k in zip(deltas, weights, strict=True))
    limit = math.log(1000 / 16)
    dw, dh = min(dw, limit), min(dh, limit)
    cx, cy = x + w / 2 + dx * w, y + h / 2 + dy * h
    ww, hh = w * math.exp(dw), h * math.exp(dh)
    expected = np.array([cx - ww / 2, cy - hh / 2, cx + ww / 2, cy + hh / 2])
    anchor = np.array([x, y, x + w, y + h], np.float32)
    found = decode(np.array(deltas, np.float32), anchor, weights)
    np.testing.assert_allclose(found, expected, atol=2e-5 * (np.abs(expected).max() + 1))
    back = encode(expected.astype(np.float32), anchor, weights)
    wanted = np.array([dx, dy, dw, dh]) * weights
    # float32 corners far from a tiny box cannot say its size better.
    coarse = np.abs(expected).max() / min(ww, hh, w, h)
    np.testing.assert_allclose(back, wanted, atol=2e-6 * max(weights) * (coarse + 10))


def loop_match(boxes, targets, high, low, best_per_target, top_k):
    label, index = [], []
    overlap = [[loop_iou(b, t) for t in targets] for b in boxes]
    for row in overlap:
        best = max(row, default=np.float32(-1))
        index.append(row.index(best) if row else 0)
        label.append(1 if best >= np.float32(high) else (0 if best < np.float32(low) else -1))
    chosen = set()
    for t in range(len(targets)):
        column = [row[t] for row in overlap]
        if best_per_target and max(column) > 0:
            for b, value in enumerate(column):
                if value == max(column):
                    label[b] = 1
        chosen |= set(sorted(range(len(boxes)), key=lambda b, c=column: (-c[b], b))[: top_k or 0])
    if top_k:
        label = [0 if one == 1 and b not in chosen else one for b, one in enumerate(label)]
    return label, index


match = jax.jit(match_by_iou, static_argnums=(3, 4, 5, 6))


@settings(max_examples=150)
@given(
    rows=st.lists(box, min_size=ROWS, max_size=ROWS),
    truth=targets,
    rule=st.sampled_from([(0.7, 0.3, True, None), (0.5, 0.5, False, None), (0.5, 0.5, False, 3)]),
)
def test_matcher(rows, truth, rule):
    padded, valid = pad(truth, TARGETS)
    label, index = match(np.asarray(rows, np.float32), padded, valid, *rule)
    expected, best = loop_match(rows, truth, *rule)
    assert label.tolist() == expected
    foreground = np.asarray(expected) == 1
    np.testing.assert_array_equal(np.asarray(index)[foreground], np.asarray(best)[foreground])


suppress = [jax.jit(form, static_argnums=(3, 4)) for form in (nms, dense_nms)]


@pytest.mark.parametrize("form", suppress)
@settings(max_examples=150)
@given(
    rows=boxes,
    scores=st.lists(st.integers(0, 5), min_size=ROWS, max_size=ROWS),
    threshold=st.sampled_from([0.25, 0.5, 0.7]),
)
def test_nms(form, rows, scores, threshold):
    padded, valid = pad(rows, ROWS)
    values = np.asarray(scores, np.float32)
    indices, kept = form(padded, values, valid, threshold, 8)
    expected = []
    for i in sorted(range(len(rows)), key=lambda i: (-scores[i], i)):
        if all(loop_iou(rows[i], rows[j]) <= np.float32(threshold) for j in expected):
            expected.append(i)
    assert np.asarray(indices)[np.asarray(kept)].tolist() == expected[:8]
