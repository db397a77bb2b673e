"""Agreement of proposals on cases with known answers; encoders in half precision."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_sam import blocky_image, small_sam

from bridge.proposals.agreement import Agreement, box_agreement
from bridge.proposals.prompts import Prompts, dense_grid
from bridge.proposals.sam_proposals import propose
from bridge.proposals.selection import ProposalConfig
from bridge.sam.prompting import PromptedImage
from weaksam_jax.data.store import Proposals

NONE = np.zeros((0, 5), np.float32)


def proposals(boxes, source):
    count = len(source)
    column = np.zeros(count, np.float32)
    return Proposals(
        image_id=1,
        height=100,
        width=100,
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        source=np.asarray(source, np.uint8),
        prompt=np.zeros(count, np.int32),
        token=np.ones(count, np.uint8),
        predicted_iou=column,
        stability=column,
        masks=None,
    )


def test_partners_are_one_to_one_and_of_one_source():
    reference = proposals([[0, 0, 50, 50], [0, 0, 50, 49], [10, 10, 20, 20]], [0, 0, 3])
    assert box_agreement(reference, reference) == Agreement(3, 3, 0)
    # One box cannot be the partner of two; one of another source of none.
    other = proposals([[0, 0, 50, 48], [10, 10, 20, 20]], [0, 0])
    found = box_agreement(reference, other)
    assert found == Agreement(3, 1, 1) and found.share == pytest.approx(1 / 3)
    # The better pairing of two: (50, 49) and (49, 48), not (49, 49) and nothing.
    shifted = proposals([[0, 0, 50, 49], [0, 0, 50, 44]], [0, 0])
    assert box_agreement(reference, shifted, least_iou=0.895).matched == 2
    assert box_agreement(reference, proposals([], [])) == Agreement(3, 0, 0)
    assert box_agreement(proposals([], []), reference).share == 1


# Random weights give flat logits, where a rounding moves much: with the trained sam_mini 98.8 %
# (bfloat16) and 99.9 % (float16) of 995 boxes of 12 drawn images have a partner.
@pytest.mark.parametrize("dtype, least", [("bfloat16", 0.7), ("float16", 0.9)])
def test_half_precision_is_for_the_encoder_alone_and_boxes_stay(dtype, least):
    sam = small_sam()
    matched = boxes = 0
    for seed in range(4):
        image = blocky_image(seed, 75, 110)
        full, half = PromptedImage(sam, image), PromptedImage(sam, image, dtype)
        features = half.predictor.features
        assert features.dtype == torch.float32
        error = (features - full.predictor.features).abs().max()
        assert 1e-5 < error < 0.05 * full.predictor.features.abs().max()
        logits, predicted_iou = half.decode(np.asarray([[[9.0, 9]]]))
        assert logits.dtype == predicted_iou.dtype == half.upsample(logits[0]).dtype
        assert logits.dtype == torch.float32
        config = ProposalConfig(t_iou=-100.0, t_stab=0.0, stability_offset=0.2, grid_nms=0.7)
        prompts = Prompts(dense_grid(8, 75, 110), NONE)
        reference = propose(sam, image, prompts, config)
        other = propose(sam, image, prompts, replace(config, encoder_dtype=dtype))
        found = box_agreement(reference, other)
        matched, boxes = matched + found.matched, boxes + found.boxes
    assert boxes > 30 and matched >= least * boxes
