"""Boxes against segment_anything as WeakSAM's official code uses it; ViT-B at 1024 is slow."""

import numpy as np
import pytest
import torch
from small_sam import blocky_image, small_sam

from bridge.proposals.prompts import Prompts
from bridge.proposals.sam_proposals import propose
from bridge.proposals.selection import ProposalConfig
from experiments.bench import sam as bench_sam

HEIGHT, WIDTH = 90, 120
GRID, COARSE, FINE, CROSS = range(4)


class EncodeOnce(torch.nn.Module):
    """An image encoder that remembers its last input; counts how often it was asked."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.img_size, self.asked, self.seen = encoder, encoder.img_size, 0, None

    def forward(self, image):
        self.asked += 1
        if self.seen is None or not torch.equal(self.seen[0], image):
            self.seen = image, self.encoder(image)
        return self.seen[1]


def small():
    """As `random_vit_b`: predicted IoU around 0.3, masks of many shapes."""
    sam = small_sam()
    head = sam.mask_decoder.iou_prediction_head.layers[-1]
    head.weight.data.mul_(0.2)
    head.bias.data.mul_(0).add_(0.2)
    for mlp in sam.mask_decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.data.mul_(8)
    sam.mask_threshold *= 8
    return sam


@pytest.fixture(scope="module", params=["small", pytest.param("vit_b", marks=pytest.mark.slow)])
def sam(request):
    made = small() if request.param == "small" else bench_sam.random_vit_b()
    made.image_encoder = EncodeOnce(made.image_encoder)
    return made


@pytest.fixture(scope="module")
def image():
    return blocky_image(3, HEIGHT, WIDTH)


def exclusive(boxes):
    """The project's boxes from inclusive ones, without those of empty masks."""
    return boxes[boxes.any(1)] + np.asarray([0, 0, 1, 1])


def test_official_thresholds_give_the_boxes_of_the_automatic_mask_generator(sam, image):
    from segment_anything import SamAutomaticMaskGenerator

    generator = SamAutomaticMaskGenerator(
        sam, 6, pred_iou_thresh=0.3, stability_score_thresh=0.3, box_nms_thresh=0.3
    )
    expected = np.asarray([one["bbox"] for one in generator.generate(image)])
    expected[:, 2:] += expected[:, :2]
    prompts = bench_sam.random_prompts(0, HEIGHT, WIDTH, 6, (0, 0, 0))
    found = propose(sam, image, Prompts(prompts.grid, bench_sam.NO_POINTS), ProposalConfig())
    loose = ProposalConfig(t_iou=-100.0, t_stab=0.0, grid_nms=1.0)
    every = propose(sam, image, Prompts(prompts.grid, bench_sam.NO_POINTS), loose)
    # All three thresholds bite: neither all masks pass one nor none.
    assert 0.1 < (every.predicted_iou > 0.3).mean() < 0.95
    assert 0.1 < (every.stability >= 0.3).mean() < 0.95
    passed = (every.predicted_iou > 0.3) & (every.stability >= 0.3)
    assert 2 < len(found) < passed.sum()
    np.testing.assert_array_equal(found.boxes, expected + np.asarray([0, 0, 1, 1]))


def test_the_official_procedure_finds_the_same_boxes_with_more_encodings(sam, image):
    """Grid, single points, class-wise prompts and thinned cross points: all of section 3."""
    prompts = bench_sam.random_prompts(1, HEIGHT, WIDTH, 4, (4, 3, 8))
    before = sam.image_encoder.asked
    official = bench_sam.official_procedure(sam, image, prompts)
    middle = sam.image_encoder.asked
    found = propose(sam, image, prompts, ProposalConfig())
    assert (middle - before, sam.image_encoder.asked - middle) == (6, 1)
    unthinned = propose(sam, image, prompts, ProposalConfig(cross_nms=None))
    assert len(unthinned) > len(found)
    for source, boxes in enumerate(official):
        expected = exclusive(boxes)
        assert len(expected), source
        np.testing.assert_array_equal(found.boxes[found.source == source], expected)
    text = bench_sam.equal_boxes(found, official)
    assert "DIFFERENT" not in text and f"cross {len(exclusive(official[CROSS]))} equal" in text
    other = [*official[:CROSS], official[CROSS] + 1]
    assert "cross" in bench_sam.equal_boxes(found, other).split("DIFFERENT")[0]


def test_single_points_are_the_predictors(sam, image):
    from segment_anything import SamPredictor

    points = bench_sam.random_prompts(2, HEIGHT, WIDTH, 0, (5, 0, 0)).points
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    expected = []
    for point in points:
        masks, _, _ = predictor.predict(point[None, :2], np.ones(1))
        expected += [bench_sam._inclusive_box(mask) for mask in masks[1:]]
    found = propose(sam, image, Prompts(np.zeros((0, 2)), points), ProposalConfig())
    assert len(np.unique(found.boxes, axis=0)) > 4
    np.testing.assert_array_equal(found.boxes, exclusive(np.asarray(expected)))
