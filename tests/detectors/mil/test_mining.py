"""Mining rules against loops over proposals; what no gradient flows through is in
test_losses_mil.py."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from mining_loops import (
    N,
    images,
    mist_loop,
    official_loop,
    oicr_loop,
    overlap,
    overlap_plus_one,
)

from weaksam_jax.detectors.mil import loss as mil
from weaksam_jax.detectors.mil import mining

MIST_OPTIONS = "top_fraction", "max_overlap", "foreground_iou", "ignore_below"
MIST = jax.jit(mil.mine_mist, static_argnames=MIST_OPTIONS)
OICR = jax.jit(mil.mine_oicr, static_argnames=("foreground_iou", "rule", "ignore_below"))
SUPPRESS = jax.jit(mining._suppress)


def check(result, image, expected):
    boxes, valid = image[:2]
    labels, weights, targets = (np.asarray(x) for x in result)
    np.testing.assert_array_equal(labels[valid], expected[0])
    np.testing.assert_array_equal(weights[valid], np.asarray(expected[1], np.float32))
    np.testing.assert_array_equal(targets[valid], np.reshape(expected[2], (-1, 4)))
    assert not labels[~valid].any() and not weights[~valid].any()
    np.testing.assert_array_equal(targets[~valid], boxes[~valid])


def own(image):
    """What a loop takes of an image."""
    boxes, valid, scores, tags = image
    return boxes[valid], scores[valid], tags


@pytest.mark.parametrize("options", [(0.15, 0.2, 0.5, 0.0), (0.7, 0.5, 0.25, 0.1)])
@settings(max_examples=200)
@given(image=images())
def test_mist_equals_the_loop(options, image):
    named = dict(zip(MIST_OPTIONS, options, strict=True))
    check(MIST(*image, **named), image, mist_loop(*own(image), *options))


@pytest.mark.parametrize(("rule", "loop"), [("paper", oicr_loop), ("official", official_loop)])
@pytest.mark.parametrize("options", [(0.5, 0.0), (0.25, 0.1)])
@settings(max_examples=200)
@given(image=images())
def test_oicr_equals_the_loop(rule, loop, options, image):
    foreground, ignore_below = options
    expected = loop(*own(image), foreground, ignore_below)
    found = OICR(*image, foreground_iou=foreground, rule=rule, ignore_below=ignore_below)
    check(found, image, expected)


def random_image(seed):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 10, (N, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 8, (N, 2))], 1).astype(np.float32)
    tags = np.array([True, False, True, True])
    return boxes, np.ones(N, bool), rng.uniform(0.5, 1, (N, 4)).astype(np.float32), tags


def test_rules_and_options_differ():
    """What the comparisons above would not show if an option did nothing on these images."""
    few, ignoring = {"top_fraction": 0.7}, {"ignore_below": 0.1}
    kinds = [
        (MIST, few),
        (MIST, few | {"max_overlap": 0.5}),
        (MIST, few | ignoring),
        *(
            (OICR, {"rule": rule} | more)
            for rule in ("paper", "official")
            for more in ({}, ignoring)
        ),
    ]
    found = {
        b"".join(
            np.asarray(x).tobytes() for seed in range(5) for x in mine(*random_image(seed), **more)
        )
        for mine, more in kinds
    }
    assert len(found) == len(kinds)


def test_plus_one_of_the_official_code_is_a_shift_of_the_corners():
    for seed in range(20):
        inclusive, valid, scores, tags = random_image(seed)
        inclusive[:, 2:] -= 1  # a box of one pixel has equal corners
        shifted = inclusive + np.array([0, 0, 1, 1], np.float32)
        labels, weights, targets = mist_loop(inclusive, scores, tags, iou=overlap_plus_one)
        targets = np.asarray(targets) + np.array([0, 0, 1, 1])
        image = shifted, valid, scores, tags
        check(MIST(*image), image, (labels, weights, targets))


def test_number_of_competitors_is_exact():
    table = mining._competitors(2000, 0.15)
    assert [int(table[n]) for n in (1, 9, 10, 13, 14, 20, 40, 140, 2000)] == [
        *(1, 1, 1, 1, 2, 3, 6, 21, 300)
    ]


def test_suppression_settles_a_chain_where_every_box_blocks_the_next():
    boxes = np.zeros((N, 4), np.float32)
    boxes[:, 0] = np.arange(N)
    boxes[:, 2], boxes[:, 3] = boxes[:, 0] + 4, 5  # IoU with the next 3/5, with the one after 1/3
    assert overlap(boxes[0], boxes[1]) > 0.5 > overlap(boxes[0], boxes[2])
    np.testing.assert_array_equal(SUPPRESS(boxes, np.ones(N, bool)), np.arange(N) % 2 == 0)
    late = np.arange(N) >= 5  # candidates from the sixth on
    np.testing.assert_array_equal(SUPPRESS(boxes, late), late & (np.arange(N) % 2 == 1))


@pytest.mark.parametrize(
    "mine", [mil.mine_mist, functools.partial(mil.mine_oicr, rule="official")], ids=["mist", "oicr"]
)
def test_images_of_a_batch_are_independent(mine):
    batch = [random_image(seed) for seed in range(3)]
    batch[1][1][:] = False
    together = jax.jit(jax.vmap(mine))(*(np.stack(column) for column in zip(*batch, strict=True)))
    alone = jax.jit(mine)
    for i, image in enumerate(batch):
        for one, other in zip(alone(*image), together, strict=True):
            np.testing.assert_array_equal(one, other[i])
