"""NMS against a NumPy loop, with ties, padding, empty input and per-class boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from weaksam_jax.boxes import iou
from weaksam_jax.ops.nms import dense_nms, multiclass_nms, nms


def greedy(boxes, scores, valid, threshold):
    kept = []
    for i in sorted(np.flatnonzero(valid), key=lambda i: (-scores[i], i)):
        if all(iou(boxes[i : i + 1], boxes[j : j + 1])[0, 0] <= threshold for j in kept):
            kept.append(int(i))
    return kept


def random_case(rng, count, classes=None):
    # Small integers: many equal boxes, equal scores and IoUs exactly at the threshold.
    corner = rng.integers(0, 12, (count, 2) if classes is None else (count, classes, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 9, corner.shape)], -1)
    shape = (count,) if classes is None else (count, classes)
    scores = rng.integers(0, 9, shape) / 8
    return boxes.astype(np.float32), scores.astype(np.float32), rng.random(count) < 0.8


@pytest.mark.parametrize("form", [nms, dense_nms])
@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 1.0])
def test_nms_equals_the_loop(form, threshold):
    rng = np.random.default_rng(0)
    run = jax.jit(form, static_argnums=(3, 4))
    for _ in range(60):
        boxes, scores, valid = random_case(rng, 40)
        valid &= rng.random() < 0.95
        indices, kept = run(*map(jnp.asarray, (boxes, scores, valid)), threshold, 12)
        expected = greedy(boxes, scores, valid, threshold)[:12]
        assert list(np.asarray(indices)[np.asarray(kept)]) == expected
        assert list(kept) == [True] * len(expected) + [False] * (12 - len(expected))


def test_a_chain_of_boxes_takes_a_round_each_and_still_ends():
    """Every second box of a row in which each overlaps the next: the most rounds there can be."""
    left = np.arange(200, dtype=np.float32) * 4
    boxes = np.stack(
        [left, np.zeros(200, np.float32), left + 10, np.full(200, 10.0, np.float32)], 1
    )
    indices, kept = dense_nms(boxes, -left, np.ones(200, bool), 0.3, 150)
    assert kept.sum() == 100
    np.testing.assert_array_equal(indices[:100], np.arange(0, 200, 2))
    assert not dense_nms(boxes, -left, np.zeros(200, bool), 0.3, 250)[1].any()


@pytest.mark.parametrize(
    ("per_class", "outputs", "every_class", "top"),
    [
        (False, 40, False, 20),
        (True, 40, False, 20),
        (True, 7, False, None),
        (True, 7, True, 20),
        (False, 4, True, None),
    ],
)
def test_multiclass_nms_equals_the_loop_under_vmap(per_class, outputs, every_class, top):
    rng = np.random.default_rng(1)
    count, classes = 30, 3
    cases = [random_case(rng, count, classes) for _ in range(50)]
    cases[0] = (cases[0][0], cases[0][1], np.zeros(count, bool))
    cases = [(b if per_class else b[:, 0], s, v) for b, s, v in cases]
    batch = [jnp.asarray(np.stack(column)) for column in zip(*cases, strict=True)]
    settings = {"score_threshold": 0.25, "iou_threshold": 0.5, "max_output": outputs}
    settings |= {"pre_nms_top_k": top, "every_class": every_class}
    run = jax.jit(jax.vmap(lambda b, s, v: multiclass_nms(b, s, v, **settings)))
    results = [np.asarray(x) for x in run(*batch)]
    for image, (boxes, scores, valid) in enumerate(cases):
        expected = []
        for c in range(classes):
            own = boxes[:, c] if per_class else boxes
            candidates = [i for i in range(count) if valid[i] and scores[i, c] > 0.25]
            candidates = sorted(candidates, key=lambda i: (-scores[i, c], i))[:top]
            mask = np.isin(np.arange(count), candidates)
            picked = greedy(own, scores[:, c], mask, 0.5)
            expected += [(-scores[i, c], c, k, own[i]) for k, i in enumerate(picked)]
        # Falling score; with every_class the first of each class before all others, then so.
        expected.sort(key=lambda e: (e[2] > 0 if every_class else 0, *e[:3]))
        expected = sorted(expected[:outputs], key=lambda e: e[:3])
        found_boxes, found_scores, labels, kept = (x[image] for x in results)
        assert kept.sum() == len(expected) and kept[: len(expected)].all()
        for row, (score, label, _, box) in enumerate(expected):
            assert (found_scores[row], labels[row]) == (-score, label)
            np.testing.assert_array_equal(found_boxes[row], box)
        assert not found_boxes[~kept].any() and not found_scores[~kept].any()


def crowded(rng, count=300, classes=4, places=3):
    """Boxes on few places, some better than others: most of a class suppress each other."""
    corner = rng.integers(0, places, (count, classes, 2)) * 40 + rng.uniform(0, 2, (count, 1, 2))
    boxes = np.concatenate([corner, corner + 30 + rng.uniform(0, 2, (count, 1, 2))], -1)
    place = corner // 40 @ [places, 1]
    scores = (places**2 - place + rng.random((count, classes))) / 10
    return boxes.astype(np.float32), scores.astype(np.float32)


def test_a_cut_to_200_candidates_changes_the_survivors_and_no_cut_does_not():
    """What the paper's rule gives: NMS of all boxes of a class, then the best of all classes."""
    rng, changed = np.random.default_rng(2), 0
    settings = {"score_threshold": 0.0, "iou_threshold": 0.3, "max_output": 34}
    exact = jax.jit(lambda b, s, v: multiclass_nms(b, s, v, **settings))
    cut = jax.jit(lambda b, s, v: multiclass_nms(b, s, v, **settings, pre_nms_top_k=200))
    for _ in range(4):
        boxes, scores = crowded(rng)
        valid = rng.random(len(boxes)) < 0.9
        expected = []
        for c in range(scores.shape[1]):
            picked = greedy(boxes[:, c], scores[:, c], valid, 0.3)
            expected += [(-scores[i, c], c, tuple(boxes[i, c])) for i in picked]
        expected = sorted(expected)[:34]
        found, found_scores, labels, kept = map(np.asarray, exact(boxes, scores, valid))
        rows = zip(-found_scores[kept], labels[kept], map(tuple, found[kept]), strict=True)
        assert list(rows) == expected
        changed += len(expected) != int(np.asarray(cut(boxes, scores, valid)[3]).sum())
    assert changed == 4
