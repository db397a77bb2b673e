"""The mining rules as loops over proposals, and random images to hold them against.

A loop takes the boxes `[n, 4]` and scores `[n, C]` of the valid proposals and the tags; it returns
the labels, weights and targets of the proposals.
"""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

N, C, SIDE = 24, 4, 12


def overlap(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return np.float32(both) / np.float32(union) if union > 0 else np.float32(0)


def overlap_plus_one(a, b):
    """Of boxes whose last row and column are included, as MIST's official code counts."""
    w = min(a[2], b[2]) - max(a[0], b[0]) + 1
    h = min(a[3], b[3]) - max(a[1], b[1]) + 1
    both = max(w, 0) * max(h, 0)
    areas = [(x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)]
    return np.float32(both) / np.float32(sum(areas) - both)


def assign(boxes, pseudo, is_foreground, ignore_below, iou=overlap):
    labels, weights, targets = [], [], []
    for box in boxes:
        best, highest = None, -1
        for g in pseudo:  # the first of equals wins
            if iou(box, g[0]) > highest:
                best, highest = g, iou(box, g[0])
        if best is None:
            best = (box, 0, -1)
        labels.append(best[2] + 1 if is_foreground(highest) else 0)
        weights.append(best[1] if highest >= np.float32(ignore_below) else 0)
        targets.append(best[0])
    return labels, weights, targets


def mist_loop(
    boxes, scores, tags, fraction=0.15, limit=0.2, foreground=0.5, ignore_below=0.0, iou=overlap
):
    n = len(boxes)
    k = 1 if n < 10 else max(1, int(np.floor(np.round(fraction * n, 9))))
    pseudo = []
    for c in np.flatnonzero(tags):
        order = sorted(range(n), key=lambda i: (-scores[i, c], i))[:k]
        for rank, i in enumerate(order):
            better = (iou(boxes[i], boxes[j]) for j in order[:rank])
            if all(value < np.float32(limit) for value in better):
                pseudo.append((boxes[i], scores[i, c], c))
    return assign(boxes, pseudo, lambda v: v >= np.float32(foreground), ignore_below, iou)


def oicr_loop(boxes, scores, tags, foreground=0.5, ignore_below=0.0):
    scores, pseudo = scores.copy(), []
    for c in np.flatnonzero(tags):
        if len(boxes):
            i = int(np.argmax(scores[:, c]))
            pseudo.append((boxes[i], scores[i, c], c))
            scores[i] = 0
    return assign(boxes, pseudo, lambda v: v > np.float32(foreground), ignore_below)


def official_loop(boxes, scores, tags, foreground=0.5, ignore_below=0.0):
    """Every (proposal, class) near the best of its class competes by itself."""
    entries = []
    for c in np.flatnonzero(tags):
        enough = np.float32(0.9) * scores[:, c].max(initial=0)
        entries += [(-scores[i, c], i, c) for i in range(len(boxes)) if scores[i, c] >= enough]
    pseudo = []
    for score, i, c in sorted(entries):
        if all(overlap(boxes[i], kept[0]) <= 0.5 for kept in pseudo):
            pseudo.append((boxes[i], -score, c))
    return assign(boxes, pseudo, lambda v: v >= np.float32(foreground), ignore_below)


def _array(draw, shape, low, high):
    elements = st.integers(low, high)
    return draw(hnp.arrays(np.int32, shape, elements=elements, fill=st.nothing()))


@st.composite
def images(draw):
    """(boxes, valid, scores, tags) of one image: 0 to N proposals, padding anywhere.

    Integer corners in a small image: doubles, equal IoUs, IoUs at a threshold, boxes of one pixel
    and boxes at the border are common. Scores have few values (ties, zeros) or many.
    """
    valid = np.zeros(N, bool)
    valid[draw(st.permutations(range(N)))[: draw(st.integers(0, N))]] = True
    corner = _array(draw, (N, 2), 0, SIDE - 1)
    size = _array(draw, (N, 2), 1, draw(st.sampled_from([1, 4, SIDE])))
    boxes = np.concatenate([corner, np.minimum(corner + size, SIDE)], 1).astype(np.float32)
    levels = draw(st.sampled_from([1, 6, 1000]))
    scores = (_array(draw, (N, C), 0, levels) / levels).astype(np.float32)
    boxes[~valid], scores[~valid] = 0, 9.0
    return boxes, valid, scores, _array(draw, C, 0, 1).astype(bool)
