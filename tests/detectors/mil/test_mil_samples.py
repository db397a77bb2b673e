"""What a sample shows of an image, and boxes back from it."""

import numpy as np
import pytest
from tiny_mil import TINY

from weaksam_jax.data.scales import Shown
from weaksam_jax.data.views import View, fitted_size, restore_boxes
from weaksam_jax.detectors.mil import MilSamples


@pytest.mark.parametrize("flip", [False, True])
def test_restoring_boxes_is_the_inverse_of_showing_them(drawn, flip):
    train, _, proposals = drawn
    samples = MilSamples(train, proposals, TINY)
    record, boxes = train.records[1], samples.boxes[1][:10]
    shown = samples.show(1, slice(10), View(0, flip))
    assert shown["valid"].sum() == 10
    assert (shown["prior"][:10] == TINY.model.evidence).all() and not shown["prior"][10:].any()
    original = np.float32([record.height, record.width])
    back = restore_boxes(shown["boxes"][:10], shown["size"], original, flip)
    np.testing.assert_allclose(back, boxes, atol=1e-3)
    padded = shown["image"].shape[:2]
    size = fitted_size(record, Shown(padded, min(padded)))
    assert tuple(shown["size"]) == size  # what cached maps assume
