"""Mining and losses against NumPy loops written from the definitions; gradients by differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from weaksam_jax.boxes import encode
from weaksam_jax.losses import mil

N, C = 24, 4
MIST = jax.jit(mil.mine_mist, static_argnums=(4, 5, 6))
OICR = jax.jit(mil.mine_oicr)


def overlap(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return np.float32(both) / np.float32(union) if union > 0 else np.float32(0)


def assign(boxes, pseudo, is_foreground):
    labels, weights, targets = [], [], []
    for box in boxes:
        best = None
        for g in pseudo:  # the first of equals wins
            if best is None or overlap(box, g[0]) > overlap(box, best[0]):
                best = g
        if best is None:
            labels, weights, targets = [*labels, 0], [*weights, 0], [*targets, box]
            continue
        labels.append(best[2] + 1 if is_foreground(overlap(box, best[0])) else 0)
        weights.append(best[1])
        targets.append(best[0])
    return labels, weights, targets


def mist_loop(boxes, scores, tags, fraction, max_overlap, foreground):
    n = len(boxes)
    k = 1 if n < 10 else max(1, int(np.floor(np.round(fraction * n, 9))))
    pseudo = []
    for c in np.flatnonzero(tags):
        order = sorted(range(n), key=lambda i: (-scores[i, c], i))[:k]
        for rank, i in enumerate(order):
            better = (overlap(boxes[i], boxes[j]) for j in order[:rank])
            if all(value < np.float32(max_overlap) for value in better):
                pseudo.append((boxes[i], scores[i, c], c))
    return assign(boxes, pseudo, lambda value: value >= np.float32(foreground))


def oicr_loop(boxes, scores, tags):
    scores, pseudo = scores.copy(), []
    for c in np.flatnonzero(tags):
        i = int(np.argmax(scores[:, c]))
        pseudo.append((boxes[i], scores[i, c], c))
        scores[i] = 0
    return assign(boxes, pseudo, lambda value: value > np.float32(0.5))


def random_case(rng):
    n = int(rng.integers(1, N + 1))
    corner = rng.integers(0, 10, (N, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 8, (N, 2))], 1).astype(np.float32)
    scores = rng.random((N, C)).astype(np.float32)
    if rng.random() < 0.5:
        scores = np.round(scores * 4) / 4  # ties
    valid = np.zeros(N, bool)
    valid[rng.permutation(N)[:n]] = True  # padding anywhere
    boxes[~valid], scores[~valid] = 0, 9.0
    return boxes, valid, scores, rng.random(C) < 0.5


def check(result, valid, boxes, expected):
    labels, weights, targets = (np.asarray(x) for x in result)
    np.testing.assert_array_equal(labels[valid], expected[0])
    np.testing.assert_array_equal(weights[valid], np.asarray(expected[1], np.float32))
    np.testing.assert_array_equal(targets[valid], np.reshape(expected[2], (-1, 4)))
    assert not labels[~valid].any() and not weights[~valid].any()


@pytest.mark.parametrize(
    ("fraction", "max_overlap", "foreground"), [(0.15, 0.2, 0.5), (0.7, 0.5, 0.25)]
)
def test_mist_equals_the_loop(fraction, max_overlap, foreground):
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(300):
        boxes, valid, scores, tags = random_case(rng)
        result = MIST(boxes, valid, scores, tags, fraction, max_overlap, foreground)
        own = np.where(valid[:, None], scores, 0)[valid]
        expected = mist_loop(boxes[valid], own, tags, fraction, max_overlap, foreground)
        check(result, valid, boxes, expected)
        kept += len({tuple(t) for t in expected[2]}) > tags.sum()
    assert kept > 20  # several pseudo boxes a class did occur


def test_number_of_competitors_is_exact():
    table = mil._competitors(2000, 0.15)
    assert [int(table[n]) for n in (1, 9, 10, 13, 14, 20, 40, 140, 2000)] == [
        *(1, 1, 1, 1, 2, 3, 6, 21, 300)
    ]


def test_oicr_equals_the_loop():
    rng = np.random.default_rng(1)
    for _ in range(300):
        boxes, valid, scores, tags = random_case(rng)
        result = OICR(boxes, valid, scores, tags)
        check(result, valid, boxes, oicr_loop(boxes[valid], scores[valid], tags))


def random_outputs(rng, count=N):
    shapes = [(count, C + 1), (count, C + 1), (3, count, C + 1), (3, count, C + 1, 4)]
    return mil.MilOutputs(*(jnp.asarray(rng.normal(size=s) * 2, jnp.float32) for s in shapes))


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def loss_loop(outputs, boxes, tags, method):
    """Float64, valid proposals only."""
    cls, det, refine, deltas = (np.asarray(x, np.float64) for x in outputs)
    teacher = softmax(cls, 1) * softmax(det, 0)
    p = np.clip(teacher.sum(0), 1e-6, 1 - 1e-6)
    y = np.concatenate([[0], tags])
    total = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    for lam, logits, delta in zip((3, 1, 1), refine, deltas, strict=True):
        t = teacher[:, 1:].astype(np.float32)
        mined = mist_loop(boxes, t, tags, 0.15, 0.2, 0.5)
        if method == "oicr":
            mined = oicr_loop(boxes, t, tags)
        probability = softmax(logits, 1)
        for r, (label, weight, target) in enumerate(zip(*mined, strict=True)):
            total += lam * weight * -np.log(probability[r, label]) / len(boxes)
            if label > 0 and method == "mist":
                error = np.abs(delta[r, label] - encode(np.array(target), boxes[r]))
                smooth = np.where(error < 1, error**2 / 2, error - 0.5)
                total += lam * weight * smooth.sum() / len(boxes)
        teacher = probability
    return total


@pytest.mark.parametrize("method", ["mist", "oicr"])
def test_loss_equals_the_loop_whatever_the_padding(method):
    rng = np.random.default_rng(2)
    run = jax.jit(lambda o, b, v, t: mil.mil_loss(o, b, v, t, method))
    for _ in range(40):
        boxes, valid, _, tags = random_case(rng)
        outputs = random_outputs(rng)
        own = mil.MilOutputs(
            outputs.cls[valid], outputs.det[valid], outputs.refine[:, valid],
            outputs.deltas[:, valid],
        )  # fmt: skip
        loss, terms = run(outputs, boxes, valid, tags)
        np.testing.assert_allclose(loss, loss_loop(own, boxes[valid], tags, method), rtol=2e-5)
        assert (terms["regress"] > 0) == (method == "mist" and tags.any())


def test_gradient_by_finite_differences():
    rng = np.random.default_rng(3)
    boxes, valid, _, tags = random_case(rng)
    tags[0] = True
    with jax.enable_x64(True):
        outputs = mil.MilOutputs(*(jnp.asarray(x, jnp.float64) for x in random_outputs(rng)))

        @jax.jit
        def loss(o):
            return mil.mil_loss(o, boxes.astype(np.float64), valid, tags)[0]

        # The scores of WSDDN and of branches 1 and 2 also teach the next branch, through which no
        # gradient may flow: only branch 3 and the deltas can be compared with plain differences.
        gradient = jax.grad(loss)(outputs)
        for name in ("refine", "deltas"):
            value = getattr(outputs, name)
            direction = np.zeros(value.shape)
            direction[2] = rng.normal(size=value.shape[1:])
            step = 1e-5
            ahead, behind = (
                loss(outputs._replace(**{name: value + sign * step * direction}))
                for sign in (1, -1)
            )
            expected = (ahead - behind) / (2 * step)
            ours = (getattr(gradient, name) * direction).sum()
            np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_no_gradient_flows_through_the_teacher():
    rng = np.random.default_rng(4)
    boxes, valid, _, tags = random_case(rng)
    tags[0] = True
    outputs = random_outputs(rng)

    def refinement(o):
        terms = mil.mil_loss(o, boxes, valid, tags)[1]
        return terms["refine"] + terms["regress"]

    gradient = jax.grad(refinement)(outputs)
    assert not gradient.cls.any() and not gradient.det.any()
    assert gradient.refine.any() and not gradient.refine[:, ~valid].any()


@pytest.mark.parametrize("method", ["mist", "oicr"])
@pytest.mark.parametrize("case", ["no tags", "no proposals", "neither", "saturated"])
def test_empty_and_extreme_images_stay_finite(method, case):
    rng = np.random.default_rng(5)
    boxes, valid, _, tags = random_case(rng)
    tags[:] = case in ("no proposals", "saturated")
    valid[:] = case in ("no tags", "saturated")
    outputs = random_outputs(rng)
    if case == "saturated":
        outputs = jax.tree.map(lambda x: 1000 * x, outputs)
    run = jax.value_and_grad(lambda o: mil.mil_loss(o, boxes, valid, tags, method), has_aux=True)
    (loss, terms), gradient = run(outputs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, gradient)))
    if case in ("no proposals", "neither"):
        assert loss == 0
    if case == "no tags":
        assert terms["image"] > 0 and terms["refine"] == 0
