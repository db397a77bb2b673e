"""A converted detectron2 checkpoint against detectron2's detector written out in PyTorch."""

import jax
import numpy as np
import pytest
import torch
from plain_detectron2 import PlainDetector, msra_pixels, random_tensors

from bridge.weights.kinds import convert
from weaksam_jax.backbones.pixels import network_input
from weaksam_jax.backbones.resnet import ResNet50
from weaksam_jax.detectors.faster_rcnn.model import FasterRcnnNetwork
from weaksam_jax.engine.weights import load_params
from weaksam_jax.ops.matching import pyramid_level

WIDTH, CHANNELS, CLASSES, HIDDEN = 4, 8, 3, 24
SIZES, CANONICAL = (16, 24, 40, 64, 96), 40
PADDED = (96, 160)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(plain detector, our model, our parameters, uint8 image `[1, H, W, 3]`)."""
    folder = tmp_path_factory.mktemp("detectron2")
    tensors = random_tensors(WIDTH, CHANNELS, CLASSES, HIDDEN)
    torch.save({"model": tensors, "iteration": 8999}, folder / "model_final.pth")
    path = convert("faster_rcnn_detectron2", folder / "d.safetensors", folder / "model_final.pth")
    params = load_params(path)
    model = FasterRcnnNetwork(
        ResNet50(WIDTH, stride_in_1x1=True), CLASSES, anchor_sizes=tuple((s,) for s in SIZES),
        channels=CHANNELS, fc_width=HIDDEN, canonical_size=CANONICAL,
    )  # fmt: skip
    image = np.random.default_rng(0).integers(0, 256, (1, *PADDED, 3)).astype(np.uint8)
    return PlainDetector(tensors, SIZES, CANONICAL), model, params, image


def close(ours, theirs):
    """Equal to 1e-4 of the largest value, which is of order 1."""
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape and 0.1 < np.abs(theirs).max() < 100
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * max(1, np.abs(theirs).max()))


def rois():
    """Boxes for every level, some over the border of the maps."""
    rng = np.random.default_rng(1)
    side = np.array([[8], [15], [28], [56], [130]]) * rng.uniform(0.85, 1.15, (5, 2))
    corner = rng.uniform(-6, 20, (5, 2))
    return np.concatenate([corner, corner + side], 1).clip(0, [PADDED[1], PADDED[0]] * 2)


def test_pyramid_rpn_and_box_head_equal_detectron2s(case):
    plain, model, params, image = case
    boxes = rois().astype(np.float32)
    assert set(pyramid_level(boxes, 4, CANONICAL).tolist()) == {0, 1, 2, 3}

    @jax.jit
    def run(params, image, boxes):
        pixels = network_input(image, np.float32([PADDED]), "msra")
        levels = model.apply({"params": params}, pixels, method="pyramid")
        rpn = model.apply({"params": params}, levels, method="propose")
        return levels, rpn, model.apply({"params": params}, levels, boxes, method="classify")

    levels, (logits, deltas), head = run(params, image, boxes[None])
    with torch.no_grad():
        theirs = plain.pyramid(msra_pixels(image[0]))
        for ours, level in zip(levels, theirs, strict=True):
            close(ours, level.permute(0, 2, 3, 1))
        for own, own_deltas, (wanted, wanted_deltas) in zip(
            logits, deltas, plain.rpn(theirs), strict=True
        ):
            close(own, wanted)
            close(own_deltas, wanted_deltas)
        for ours, anchors in zip(model.anchors(levels), plain.anchors(theirs), strict=True):
            np.testing.assert_allclose(ours, anchors, atol=1e-4)
        class_logits, class_deltas = plain.head(theirs, 0, torch.tensor(boxes))
    close(head[0][0], class_logits)
    close(head[1][0], class_deltas.reshape(-1, CLASSES, 4))


def test_the_case_tells_detectron2_from_torchvision(case):
    """Every convention that the two libraries differ in changes the result by far more."""
    _, model, params, image = case
    boxes = rois().astype(np.float32)[None]

    def head(model, pixels="msra"):
        pixels = network_input(image, np.float32([PADDED]), pixels)
        levels = model.apply({"params": params}, pixels, method="pyramid")
        return model.apply({"params": params}, levels, boxes, method="classify")[0]

    right = head(model)
    others = (
        head(model.clone(backbone=ResNet50(WIDTH))),
        head(model.clone(aligned=False)),
        head(model, "torchvision"),
    )
    for wrong in others:
        assert np.abs(wrong - right).max() > 0.01
