"""Prompts from clue maps: points, clusters, groups, grid, kernels relative to the image."""

import dataclasses

import numpy as np
import pytest

from bridge.clues.cam_boxes import cam_boxes
from bridge.clues.interface import Clues, minmax, predicted_classes
from bridge.proposals.prompts import PromptConfig, dense_grid, prompt_points
from weaksam_jax.data.store import SOURCES
from weaksam_jax.errors import BadInput

GRID, COARSE, FINE, CROSS = (SOURCES.index(s) for s in ("grid", "coarse", "fine", "cross"))


def bumps(height, width, centres):
    """A map with a smooth bump of height 1 - 0.01 i around the i-th centre (x, y)."""
    y, x = np.mgrid[:height, :width]
    tops = [
        (1 - 0.01 * i) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 50)
        for i, (cx, cy) in enumerate(centres)
    ]
    return np.max(tops, axis=0).astype(np.float32)


def clues_of(coarse, fine, cross=None, classes=(2, 5), scale=1.0):
    return Clues(coarse, fine, cross, np.asarray(classes), np.zeros(7, np.float32), scale)


def test_points_carry_place_value_class_and_source():
    coarse = np.stack([bumps(90, 120, [(30, 40), (90, 20)]), np.zeros((90, 120), np.float32)])
    fine = np.stack([bumps(90, 120, [(31, 41)]), bumps(90, 120, [(70, 80)])])
    prompts = prompt_points(clues_of(coarse, fine), PromptConfig())
    expected = [
        [30, 40, 1, 2, COARSE],
        [90, 20, 0.99, 2, COARSE],
        [31, 41, 1, 2, FINE],
        [70, 80, 1, 5, FINE],
    ]
    np.testing.assert_allclose(prompts.points, np.float32(expected), atol=1e-6)
    assert prompts.points.dtype == np.float32
    # Both coarse points of class 2 also form one prompt; single points do not.
    assert [(c, s, i.tolist()) for c, s, i in prompts.groups] == [(2, COARSE, [0, 1])]


def test_cross_points_become_cluster_centres():
    """Six heads that agree on two places: 12 points in 2 clusters, whose centres are the means."""
    rng = np.random.default_rng(0)
    first = rng.integers(-3, 4, (6, 2)) + np.array([30, 30])
    second = rng.integers(-3, 4, (6, 2)) + np.array([250, 60])
    cross = np.stack([bumps(90, 300, [a, b]) for a, b in zip(first, second, strict=True)])[:, None]
    none = np.zeros((1, 90, 300), np.float32)
    clues = clues_of(none, none, cross, classes=(4,))
    kept = prompt_points(clues, PromptConfig(cross_divisor=None)).points
    assert sorted(map(tuple, kept[:, :2])) == sorted(map(tuple, np.vstack([first, second])))
    assert set(kept[:, 3]) == {4.0} and set(kept[:, 4]) == {float(CROSS)}
    centres = prompt_points(clues, PromptConfig()).points
    expected = np.trunc([first.mean(0), second.mean(0)])
    np.testing.assert_array_equal(centres[np.argsort(centres[:, 0]), :2], expected)
    assert centres[:, 2:].tolist() == [[1, -1, CROSS]] * 2  # value 1, no class
    again = prompt_points(clues, PromptConfig()).points
    np.testing.assert_array_equal(centres, again)


def test_equal_cross_points_make_one_cluster():
    cross = np.repeat(bumps(60, 60, [(20, 30)])[None, None], 12, axis=0)
    none = np.zeros((1, 60, 60), np.float32)
    points = prompt_points(clues_of(none, none, cross, classes=(1,)), PromptConfig()).points
    assert points.tolist() == [[20, 30, 1, -1, CROSS]]


def test_flat_maps_and_images_without_tags_give_the_grid_alone():
    zero = np.zeros((2, 50, 40), np.float32)
    for clues in (
        clues_of(zero, zero, np.zeros((3, 2, 50, 40), np.float32)),
        clues_of(zero[:0], zero[:0], np.zeros((3, 0, 50, 40), np.float32), classes=()),
        clues_of(zero[:0], zero[:0], None, classes=()),
    ):
        prompts = prompt_points(clues, PromptConfig(grid_side=3))
        assert prompts.points.shape == (0, 5) and prompts.groups == []
        assert prompts.grid.shape == (9, 2)


def test_sources_can_be_left_out():
    one = bumps(60, 60, [(20, 30)])[None]
    clues = clues_of(one, one, one[None], classes=(1,))
    for source in ("grid", "coarse", "fine", "cross"):
        prompts = prompt_points(clues, PromptConfig(sources=(source,)))
        assert len(prompts.grid) == (1024 if source == "grid" else 0)
        assert set(prompts.points[:, 4]) == (
            set() if source == "grid" else {float(SOURCES.index(source))}
        )


def test_dense_grid_is_at_the_centres_of_cells():
    expected = [[(j + 0.5) / 3 * 60, (i + 0.5) / 3 * 90] for i in range(3) for j in range(3)]
    np.testing.assert_allclose(dense_grid(3, 90, 60), expected)


def test_kernel_scales_with_the_image():
    """Two bumps 24 pixels apart: a window of 17 pixels sees both, one of 129 only the better."""
    one = bumps(150, 200, [(60, 60), (84, 60)])[None]
    count = {}
    for kernel, relative in ((17, False), (129, False), (129, True), (101, True)):
        config = PromptConfig(sources=("fine",), kernel_fine=kernel, relative_kernel=relative)
        count[kernel, relative] = len(
            prompt_points(clues_of(one, one, classes=(1,)), config).points
        )
    # 129 * 200 / 500 = 51.6 pixels (reach 25); 101 * 200 / 500 = 40.4 (reach 20)
    assert count == {(17, False): 2, (129, False): 1, (129, True): 1, (101, True): 2}
    tiny = bumps(20, 20, [(5, 5)])[None]
    config = dataclasses.replace(PromptConfig.mini(), sources=("coarse", "fine"))
    assert len(prompt_points(clues_of(tiny, tiny, classes=(1,)), config).points) == 2
    with pytest.raises(BadInput, match="kernel_fine is 128; give an odd number"):
        PromptConfig(kernel_fine=128)


def test_maps_at_half_resolution_give_points_of_the_image():
    one = bumps(90, 120, [(30, 40)])[None]
    prompts = prompt_points(clues_of(one, one, classes=(1,), scale=0.5), PromptConfig())
    np.testing.assert_array_equal(prompts.points[:, :2], [[60, 80], [60, 80]])
    assert prompts.grid.max() > 200  # the grid spans the image of 180 x 240, not the map


def test_presets():
    paper, official = PromptConfig.paper(), PromptConfig.official()
    assert (paper.kernel_coarse, paper.kernel_fine, paper.kernel_cross) == (129, 129, 129)
    assert (official.kernel_coarse, official.kernel_fine, official.kernel_cross) == (17, 17, 129)
    assert (paper.cross_divisor, official.cross_divisor) == (5, None)


def test_minmax():
    maps = np.random.default_rng(0).normal(size=(3, 2, 5, 6))
    maps[1, 0] = 4.0
    scaled = minmax(maps)
    assert scaled.dtype == np.float32 and np.isfinite(scaled).all()
    assert not scaled[1, 0].any()
    others = np.delete(scaled.reshape(6, -1), 2, axis=0)
    np.testing.assert_array_equal(others.min(1), 0)
    np.testing.assert_array_equal(others.max(1), 1)
    one = (maps[2, 1] - maps[2, 1].min()) / np.ptp(maps[2, 1])
    np.testing.assert_allclose(scaled[2, 1], one, rtol=1e-5, atol=1e-7)


def test_predicted_classes():
    assert predicted_classes(np.array([-0.6, -0.4, 3, -0.5])).tolist() == [1, 2]
    assert predicted_classes(np.array([-3, -2, -7])).tolist() == [1]


def test_cam_boxes_of_rectangles():
    maps = np.zeros((2, 40, 60), np.float32)
    maps[0, 5:15, 10:30] = 0.8
    maps[0, 8:12, 14:20] = 1.0
    maps[1, 30:40, 50:60] = 0.6
    maps[1, 0, 0] = 1.0  # too small to count
    logits = np.zeros(9, np.float32)
    logits[3] = np.log(3)  # probability 0.75; class 7 has 0.5
    maps[0, 20:25, 40:44] = 0.5
    boxes, scores, labels = cam_boxes(maps, (3, 7), logits)
    assert boxes.tolist() == [[10, 5, 30, 15], [50, 30, 60, 40], [40, 20, 44, 25]]
    large, small = 0.8 * (200 - 24) + 24, 0.5 * 20
    share = np.asarray([large, small]) / (large + small)
    want = [0.75 * share[0], 0.5 * 60 / 61, 0.75 * share[1]]
    np.testing.assert_allclose(scores, want, rtol=1e-6)
    assert labels.tolist() == [3, 7, 3]
    boxes, _, _ = cam_boxes(maps, (3, 7), logits, threshold=0.9)
    assert boxes.tolist() == [[14, 8, 20, 12]]
    boxes, scores, labels = cam_boxes(maps[:0], (), logits)
    assert boxes.shape == (0, 4) and scores.shape == labels.shape == (0,)
