"""What makes the operations on boxes fit accelerators, and that it changes no result."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from weaksam_jax.boxes import iou
from weaksam_jax.ops.anchors import pyramid_anchors
from weaksam_jax.ops.nms import BLOCK, best_survivors, nms
from weaksam_jax.ops.proposals import select_proposals
from weaksam_jax.ops.roi import roi_align_pyramid


def boxes_on_a_grid(rng, count, places):
    """Whole pixels on few places: equal boxes, and chains of boxes that overlap."""
    corner = rng.integers(0, places, (count, 2))
    sides = rng.integers(1, 9, (count, 2))
    return np.concatenate([corner, corner + sides], 1).astype(np.float32)


def greedy(boxes, valid, threshold):
    """Places of the boxes, sorted already, that are kept."""
    overlap, kept = iou(boxes, boxes), []
    for i in np.flatnonzero(valid):
        if not (overlap[i, kept] > threshold).any():
            kept.append(i)
    return kept


@pytest.mark.parametrize(("places", "outputs"), [(6, 40), (40, 100), (200, 30), (200, 500)])
def test_blocks_of_boxes_keep_what_the_loop_keeps(places, outputs):
    """Several blocks, ended by enough boxes or by the last valid one."""
    count = 2 * BLOCK + 57
    run = jax.jit(lambda b, v: best_survivors(b, v, 0.4, max_output=outputs))
    for seed in range(4):
        rng = np.random.default_rng(seed)
        boxes = boxes_on_a_grid(rng, count, places)
        valid = (np.arange(count) < count - 50 * seed) & (rng.random(count) < 0.9)
        found, kept = map(np.asarray, run(boxes, valid))
        expected = greedy(boxes, valid, 0.4)[:outputs]
        assert found[kept].tolist() == expected
        assert kept.tolist() == [True] * len(expected) + [False] * (outputs - len(expected))
        assert not found[~kept].any()


def test_nms_of_several_blocks_with_ties_under_vmap():
    rng, count = np.random.default_rng(0), BLOCK + 20
    boxes = np.stack([boxes_on_a_grid(rng, count, places) for places in (4, 30, 300)])
    scores = rng.integers(0, 5, (3, count)).astype(np.float32)
    valid = rng.random((3, count)) < 0.8
    found, kept = jax.jit(jax.vmap(lambda b, s, v: nms(b, s, v, 0.3, 60)))(boxes, scores, valid)
    for image in range(3):
        order = np.lexsort((np.arange(count), -scores[image]))
        expected = order[greedy(boxes[image][order], valid[image][order], 0.3)][:60]
        np.testing.assert_array_equal(np.asarray(found[image])[np.asarray(kept[image])], expected)


def program(function, *shapes, platform="tpu") -> str:
    """As the compiler of a platform gets it."""
    return jax.jit(function).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


SHAPES, STRIDES = ((64, 96), (32, 48), (16, 24)), (4, 8, 16)


def test_anchors_are_no_constants_of_the_program():
    def anchors():
        return pyramid_anchors(SHAPES, STRIDES, ((32,), (64,), (128,)), (0.5, 1.0, 2.0))

    assert sum(map(len, anchors())) == 3 * sum(h * w for h, w in SHAPES)
    assert len(program(anchors)) < 20_000  # 24192 anchors would be 387 kB of digits


def test_the_proposals_of_all_levels_come_from_one_loop():
    """Over blocks of boxes, with one inside of it."""
    shapes = [jax.ShapeDtypeStruct((3 * h * w,), jnp.float32) for h, w in SHAPES]
    boxes = [jax.ShapeDtypeStruct((*one.shape, 4), jnp.float32) for one in shapes]

    def propose(logits, deltas, anchors):
        size = jnp.asarray([256.0, 384.0])
        return select_proposals(logits, deltas, anchors, image_size=size, pre_nms=90, post_nms=50)

    text = program(propose, shapes, boxes, boxes)
    assert len(re.findall(r"stablehlo\.while\b", text)) == 2


def test_only_a_cpu_pools_a_few_rois_at_a_time():
    """Forward and backward, of as many RoIs as a published recipe trains on."""

    def to_maps(maps, boxes, level):
        pooled, back = jax.vjp(lambda m: roi_align_pyramid(m, STRIDES, boxes, level=level), maps)
        return back(pooled)

    maps = [jax.ShapeDtypeStruct((*one, 4), jnp.float32) for one in SHAPES]
    boxes = jax.ShapeDtypeStruct((512, 4), jnp.float32), jax.ShapeDtypeStruct((512,), jnp.int32)
    for platform, loops in (("tpu", False), ("cuda", False), ("cpu", True)):
        text = program(to_maps, maps, *boxes, platform=platform)
        assert ("stablehlo.while" in text) == loops


def test_a_half_precision_pyramid_is_not_copied_and_its_gradients_still_add_up():
    """1000 equal boxes in chunks: a sum of ones in bfloat16 stops at 256, one of chunks too."""
    boxes, level = np.tile(np.float32([[0, 0, 24, 24]]), (1000, 1)), np.zeros(1000, np.int32)
    maps = [jnp.ones((3, 3, 1)), jnp.ones((2, 2, 1))]

    def total(maps):
        pooled = roi_align_pyramid(maps, (8, 16), boxes, level, output_size=3, chunk=8)
        return pooled.astype(jnp.float32).sum()

    half = [one.astype(jnp.bfloat16) for one in maps]
    assert "f32[13,1]" not in str(jax.make_jaxpr(total)(half))
    gradient = jax.jit(jax.grad(total))
    for found, expected in zip(gradient(half), gradient(maps), strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(np.float32), expected, rtol=2**-7)
