"""Proposals against SamPredictor and SamAutomaticMaskGenerator, prompt by prompt."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from small_sam import HEIGHT, WIDTH, blocky_image
from stores import stored_proposals

from bridge.proposals.export import ExportConfig
from bridge.proposals.prompts import Prompts, dense_grid
from bridge.proposals.sam_proposals import propose
from bridge.proposals.selection import ProposalConfig, cap
from bridge.sam.networks import load_sam
from bridge.sam.prompting import PromptedImage
from weaksam_jax.boxes import iou
from weaksam_jax.data.datasets import open_truth
from weaksam_jax.data.images import load_image
from weaksam_jax.data.mini_set import write_mini
from weaksam_jax.data.store import SOURCES, write_proposals

GRID, COARSE, FINE, CROSS = range(4)
NONE = np.zeros((0, 5), np.float32)
OFFSET = 0.2
ALL = ProposalConfig(
    t_iou=-100.0, t_stab=0.0, stability_offset=OFFSET, grid_nms=1.0, cross_nms=None
)


def clue_points(count, sources=(COARSE, FINE, CROSS)):
    rng = np.random.default_rng(4)
    points = np.zeros((count, 5), np.float32)
    points[:, :2] = np.trunc(rng.uniform(0, 1, (count, 2)) * (WIDTH, HEIGHT))
    points[:, 2] = 1
    points[:, 4] = np.sort(rng.choice(sources, count))
    return points


def inclusive_box(mask):
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_sources_are_in_the_order_used_here():
    assert SOURCES[:4] == ("grid", "coarse", "fine", "cross")


@pytest.mark.parametrize("grid_nms", [0.3, 0.7])
def test_grid_is_the_automatic_mask_generators(sam, image, grid_nms):
    from segment_anything import SamAutomaticMaskGenerator

    every = propose(sam, image, Prompts(dense_grid(6, HEIGHT, WIDTH), NONE), ALL)
    t_iou = float(np.quantile(every.predicted_iou, 0.25))
    t_stab = float(np.nanquantile(every.stability, 0.2))
    upstream = SamAutomaticMaskGenerator(
        sam,
        points_per_side=6,
        points_per_batch=16,
        pred_iou_thresh=t_iou,
        stability_score_thresh=t_stab,
        stability_score_offset=OFFSET,
        box_nms_thresh=grid_nms,
        output_mode="coco_rle",
    ).generate(image)
    limits = replace(ALL, t_iou=t_iou, t_stab=t_stab, grid_nms=grid_nms, chunk=7)
    found = propose(sam, image, Prompts(dense_grid(6, HEIGHT, WIDTH), NONE), limits)
    assert 2 < len(upstream) < len(every)
    assert len(found) == len(upstream)
    expected = np.asarray([one["bbox"] for one in upstream])
    expected[:, 2:] += expected[:, :2] + 1
    np.testing.assert_array_equal(found.boxes, expected)
    for name in ("predicted_iou", "stability_score"):
        values = [one[name] for one in upstream]
        np.testing.assert_allclose(getattr(found, name.removesuffix("_score")), values, rtol=1e-4)
    assert [one["segmentation"]["counts"].encode() for one in upstream] == list(found.masks)
    assert (found.source == GRID).all() and (found.prompt == -1).all()


def test_peak_points_and_groups_are_the_predictors(sam, image):
    from segment_anything import SamPredictor

    points = clue_points(12)
    coarse = np.flatnonzero(points[:, 4] == COARSE)
    groups = [(0, COARSE, coarse), (0, FINE, np.flatnonzero(points[:, 4] == FINE))]
    found = propose(sam, image, Prompts(np.zeros((0, 2)), points, groups), ALL)
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    expected = []
    for source in (COARSE, FINE, CROSS):
        members = np.flatnonzero(points[:, 4] == source)
        prompts = [(index, points[[index], :2]) for index in members]
        prompts += [(-1, points[index, :2]) for _, s, index in groups if s == source]
        for index, coordinates in prompts:
            masks, scores, _ = predictor.predict(coordinates, np.ones(len(coordinates)))
            for k in (1, 2):
                if masks[k].any():
                    expected.append((source, index, k + 1, scores[k], masks[k]))
    assert len(found) == len(expected) > 12
    for i, (source, index, token, score, mask) in enumerate(expected):
        assert (found.source[i], found.prompt[i], found.token[i]) == (source, index, token)
        assert found.predicted_iou[i] == pytest.approx(score, rel=1e-4, abs=1e-5)
        np.testing.assert_array_equal(found.boxes[i], inclusive_box(mask))
        rle = {"size": [HEIGHT, WIDTH], "counts": found.masks[i]}
        np.testing.assert_array_equal(coco_mask.decode(rle), mask)


def test_chunks_and_other_prompts_change_nothing(sam, image):
    points, grid = clue_points(9), dense_grid(4, HEIGHT, WIDTH)
    prompts = Prompts(grid, points, [(0, COARSE, np.arange(2)), (1, FINE, np.arange(2, 5))])
    together = propose(sam, image, prompts, ALL)
    small = propose(sam, image, prompts, replace(ALL, chunk=3))
    np.testing.assert_array_equal(together.boxes, small.boxes)
    assert together.masks == small.masks
    alone = propose(sam, image, Prompts(grid, NONE), ALL)
    np.testing.assert_array_equal(together.boxes[together.source == GRID], alone.boxes)
    again = propose(sam, image, prompts, ALL)
    for name in ("boxes", "predicted_iou", "stability", "source", "prompt", "token"):
        np.testing.assert_array_equal(getattr(together, name), getattr(again, name))


def test_full_size_masks_are_made_a_few_at_a_time(sam, image, monkeypatch):
    prompts, config = Prompts(dense_grid(4, HEIGHT, WIDTH), clue_points(5)), ALL
    whole, seen, run = propose(sam, image, prompts, config), [], PromptedImage.upsample

    def watched(self, logits):
        seen.append(len(logits))
        return run(self, logits)

    monkeypatch.setattr(PromptedImage, "upsample", watched)
    monkeypatch.setattr("bridge.sam.prompting.numbers_at_once", lambda device: 3 * 128**2 + 5)
    few = propose(sam, image, prompts, config)
    assert max(seen) == 3 and sum(seen) > 48
    np.testing.assert_array_equal(few.boxes, whole.boxes)
    assert few.masks == whole.masks


def test_cross_boxes_are_thinned_in_list_order(sam, image):
    points = clue_points(16, sources=(CROSS,))
    prompts = Prompts(np.zeros((0, 2)), points)
    every = propose(sam, image, prompts, ALL)
    threshold = 0.6
    found = propose(sam, image, prompts, replace(ALL, cross_nms=threshold))
    kept = []
    for i, box in enumerate(every.boxes):
        if all(iou(box[None], every.boxes[[k]])[0, 0] <= threshold for k in kept):
            kept.append(i)
    assert 0 < len(kept) < len(every)
    np.testing.assert_array_equal(found.boxes, every.boxes[kept])
    assert found.masks == tuple(every.masks[i] for i in kept)


def test_further_measures_bound_boxes_and_overlap(sam, image):
    points = clue_points(12)
    prompts = Prompts(dense_grid(5, HEIGHT, WIDTH), points)
    every = propose(sam, image, prompts, ALL)
    limits = replace(ALL, dedupe_nms=0.8, max_boxes=10, clue_share=0.5, min_side=4)
    found = propose(sam, image, prompts, limits)
    assert len(found) == 10 < len(every)
    overlap = iou(found.boxes, found.boxes) - np.eye(10)
    assert overlap.max() <= 0.8 < (iou(every.boxes, every.boxes) - np.eye(len(every))).max()
    assert (found.boxes[:, 2:] - found.boxes[:, :2]).min() >= 4
    assert (np.diff(found.source.astype(int)) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=40),
    st.integers(0, 45),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_cap_keeps_the_best_of_each_kind(rows, most, share):
    scores = np.asarray([score for score, _ in rows], np.float32)
    is_clue = np.asarray([clue for _, clue in rows], bool)
    kept = cap(scores, is_clue, most, share)
    assert len(kept) == min(most, len(rows)) and (np.diff(kept) > 0).all()
    left = np.setdiff1d(np.arange(len(rows)), kept)
    for kind in (True, False):
        mine, others = kept[is_clue[kept] == kind], left[is_clue[left] == kind]
        if len(mine) and len(others):
            assert scores[mine].min() >= scores[others].max()
    clues = is_clue[kept].sum()
    if clues > round(share * most):  # more than its part only when the grid left it free
        assert (~is_clue[left]).sum() == 0
    elif clues < round(share * most):
        assert is_clue[left].sum() == 0


def test_no_prompts_and_small_images(sam, tmp_path):
    nothing = propose(
        sam, blocky_image(0, 20, 30), Prompts(np.zeros((0, 2)), NONE), ALL, image_id=7
    )
    assert len(nothing) == 0 and nothing.masks == ()
    one = np.asarray([[1, 0, 1, -1, COARSE]], np.float32)
    tiny = propose(sam, blocky_image(0, 1, 3), Prompts(np.zeros((0, 2)), one), ALL)
    assert (tiny.height, tiny.width) == (1, 3) and (tiny.boxes[:, 3] == 1).all()
    write_proposals(tmp_path, "train", nothing, {})
    assert len(stored_proposals(tmp_path, "train", 7)) == 0


@pytest.mark.slow
def test_mini_preset_finds_the_objects_of_the_mini_set(tmp_path):
    """Issue 2: recall at IoU 0.5 of at least 0.90 with at most 150 boxes; here the grid alone."""
    mini = ExportConfig.preset("mini")
    write_mini(tmp_path, 0, train_images=2, test_images=30)
    truth, sam, hits, counts = open_truth(tmp_path, "test"), load_sam("sam_mini"), [], []
    for record in truth.records:
        image = load_image(record.path)
        prompts = Prompts(dense_grid(mini.prompts.grid_side, *image.shape[:2]), NONE)
        found = propose(sam, image, prompts, mini.proposals)
        hits += (iou(record.boxes, found.boxes).max(1) >= 0.5).tolist()
        counts.append(len(found))
    assert len(hits) > 60 and np.mean(hits) >= 0.90 and max(counts) <= 150
