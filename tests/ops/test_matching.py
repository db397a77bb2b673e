"""Matching against torchvision's Matcher and loops; levels against its LevelMapper; sampling."""

import bridge.runtime.torchvision_ops  # noqa: F401

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops.poolers import LevelMapper

from weaksam_jax.boxes import iou
from weaksam_jax.ops.matching import match_by_iou, pyramid_level
from weaksam_jax.ops.sampling import sample_balanced


def random_boxes(rng, count, low=8, high=60):
    corner = rng.uniform(0, 100, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(low, high, (count, 2))], 1).astype(
        np.float32
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("best_per_target", [True, False])
def test_equals_torchvisions_matcher(seed, best_per_target):
    rng = np.random.default_rng(seed)
    targets, boxes = random_boxes(rng, 7), random_boxes(rng, 400)
    boxes[:3] = targets[:3] + 1
    padded = np.concatenate([targets, boxes[:5]])  # padding that would match must not
    valid = np.arange(12) < 7
    label, index = match_by_iou(boxes, padded, valid, 0.7, 0.3, best_per_target)
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=best_per_target)
    expected = matcher(torch.as_tensor(iou(targets, boxes))).numpy()
    np.testing.assert_array_equal(label, np.select([expected >= 0, expected == -1], [1, 0], -1))
    foreground = expected >= 0
    assert foreground.sum() >= 3
    np.testing.assert_array_equal(np.asarray(index)[foreground], expected[foreground])


def test_a_target_that_overlaps_nothing_makes_nothing_foreground():
    boxes = random_boxes(np.random.default_rng(0), 50)
    targets = np.array([[900, 900, 910, 910], [0, 0, 0, 0]], np.float32)
    label, _ = match_by_iou(boxes, targets, np.ones(2, bool), 0.7, 0.3, best_per_target=True)
    np.testing.assert_array_equal(label, np.zeros(50))


def test_no_target_at_all_is_background():
    boxes = random_boxes(np.random.default_rng(0), 5)
    label, _ = match_by_iou(boxes, boxes, np.zeros(5, bool), 0.5, 0.5, best_per_target=True)
    np.testing.assert_array_equal(label, np.zeros(5))


def test_top_k_rule_equals_a_loop():
    rng = np.random.default_rng(3)
    targets = random_boxes(rng, 3, 30)
    boxes = np.concatenate([targets + rng.uniform(-4, 4, (1, 4)) for _ in range(8)])
    boxes = boxes.astype(np.float32)
    overlap = iou(boxes, targets)
    expected = np.zeros(len(boxes), int)
    for target in range(3):
        for box in np.argsort(-overlap[:, target], kind="stable")[:3]:
            expected[box] = int(overlap[box].max() >= 0.5)
    label, _ = match_by_iou(boxes, targets, np.ones(3, bool), 0.5, 0.5, top_k=3)
    np.testing.assert_array_equal(label, expected)
    plain, _ = match_by_iou(boxes, targets, np.ones(3, bool), 0.5, 0.5)
    assert np.sum(plain) > expected.sum() > 0


def test_levels_equal_torchvision():
    boxes = random_boxes(np.random.default_rng(1), 500, 2, 700)
    expected = LevelMapper(2, 5)([torch.as_tensor(boxes)]).numpy()
    np.testing.assert_array_equal(pyramid_level(boxes, 4), expected)
    assert set(expected) == {0, 1, 2, 3}
    assert pyramid_level(np.zeros((1, 4), np.float32), 4)[0] == 0


@pytest.mark.parametrize(
    ("foreground", "background", "expected"),
    [(100, 300, (16, 48)), (5, 300, (5, 59)), (100, 10, (16, 10)), (0, 0, (0, 0)), (3, 0, (3, 0))],
)
def test_sample_counts(foreground, background, expected):
    label = np.full(500, -1)
    order = np.random.default_rng(0).permutation(500)
    label[order[:foreground]] = 1
    label[order[foreground : foreground + background]] = 0
    index, valid = sample_balanced(label, jax.random.key(0), 64, 0.25)
    assert index.shape == valid.shape == (64,)
    chosen = label[np.asarray(index)[np.asarray(valid)]]
    assert ((chosen == 1).sum(), (chosen == 0).sum()) == expected
    assert len(set(np.asarray(index)[np.asarray(valid)].tolist())) == sum(expected)
    assert (np.diff(label[np.asarray(index)][np.asarray(valid)]) <= 0).all()  # foreground first


def test_fewer_candidates_than_slots():
    index, valid = sample_balanced(jnp.array([0, 1, -1]), jax.random.key(0), 8, 0.5)
    assert index.shape == (8,) and int(valid.sum()) == 2


def test_sampling_is_uniform():
    label = jnp.array([1] * 8 + [0] * 24 + [-1] * 4)

    def draw(key):
        index, valid = sample_balanced(label, key, 8, 0.25)
        return jnp.zeros(36).at[index].add(valid)

    counts = jax.vmap(draw)(jax.random.split(jax.random.key(1), 4000)).mean(0)
    np.testing.assert_allclose(counts[:8], 2 / 8, atol=0.04)
    np.testing.assert_allclose(counts[8:32], 6 / 24, atol=0.04)
    np.testing.assert_array_equal(counts[32:], 0)
