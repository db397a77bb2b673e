"""Detection losses against PyTorch, values and gradients."""

import bridge.runtime.torchvision_ops  # noqa: F401

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import fastrcnn_loss

from weaksam_jax.detectors.faster_rcnn.config import LossConfig
from weaksam_jax.detectors.faster_rcnn.loss import roi_losses, rpn_losses
from weaksam_jax.detectors.faster_rcnn.targets import Objects, sample_anchors, sample_rois
from weaksam_jax.losses.smooth_l1 import smooth_l1

CLASSES, COUNT = 4, 30


def random_boxes(rng, count):
    corner = rng.uniform(0, 60, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(10, 50, (count, 2))], 1).astype(np.float32)


def random_rois(seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(COUNT, CLASSES + 1)).astype(np.float32)
    deltas = rng.normal(size=(COUNT, CLASSES, 4)).astype(np.float32)
    labels = rng.integers(0, CLASSES + 1, COUNT).astype(np.int32)
    return logits, deltas, labels, random_boxes(rng, COUNT), random_boxes(rng, COUNT)


def to_torchvision(logits, deltas, labels):
    """Background first instead of last, with (unused) deltas of its own."""
    logits = torch.cat([logits[:, -1:], logits[:, :-1]], 1)
    deltas = torch.cat([torch.zeros(COUNT, 1, 4), deltas], 1).reshape(COUNT, -1)
    return logits, deltas, torch.as_tensor(np.where(labels == CLASSES, 0, labels + 1)).long()


def test_roi_losses_and_gradients_equal_torch():
    logits, deltas, labels, boxes, targets = random_rois()

    def total(logits, deltas):
        cls_loss, reg_loss = roi_losses(logits, deltas, labels, boxes=boxes, targets=targets)
        return jnp.mean(cls_loss) + 3 * jnp.sum(reg_loss) / COUNT

    value, grads = jax.value_and_grad(total, (0, 1))(jnp.asarray(logits), jnp.asarray(deltas))
    t_logits, t_deltas = (torch.tensor(x, requires_grad=True) for x in (logits, deltas))
    wanted = BoxCoder((10.0, 10.0, 5.0, 5.0)).encode_single(
        torch.as_tensor(targets), torch.as_tensor(boxes)
    )
    foreground = torch.as_tensor(labels < CLASSES)
    own = t_deltas[foreground, torch.as_tensor(labels)[foreground].long()]
    box = F.l1_loss(own, wanted[foreground], reduction="sum") / COUNT
    tv_logits, tv_deltas, tv_labels = to_torchvision(t_logits, t_deltas, labels)
    cls, _ = fastrcnn_loss(tv_logits, tv_deltas, [tv_labels], [wanted])
    (cls + 3 * box).backward()
    np.testing.assert_allclose(value, (cls + 3 * box).item(), rtol=1e-5)
    np.testing.assert_allclose(grads[0], t_logits.grad, atol=1e-6)
    np.testing.assert_allclose(grads[1], t_deltas.grad, atol=1e-6)
    assert 0 < (labels == CLASSES).sum() < COUNT


def test_background_has_no_box_loss():
    logits, deltas, labels, boxes, targets = random_rois(1)
    _, reg_loss = roi_losses(logits, deltas, labels, boxes=boxes, targets=targets)
    np.testing.assert_array_equal(np.asarray(reg_loss) > 0, labels < CLASSES)


def test_rpn_losses_and_gradients_equal_torch():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=COUNT).astype(np.float32) * 3
    deltas = rng.normal(size=(COUNT, 4)).astype(np.float32)
    anchors, targets = random_boxes(rng, COUNT), random_boxes(rng, COUNT)
    foreground, valid = rng.random(COUNT) < 0.4, rng.random(COUNT) < 0.8

    def total(logits, deltas):
        assigned = {"targets": targets, "foreground": foreground, "valid": valid}
        objectness, box = rpn_losses(logits, deltas, anchors, **assigned)
        return objectness + 2 * box

    value, grads = jax.value_and_grad(total, (0, 1))(jnp.asarray(logits), jnp.asarray(deltas))
    t_logits, t_deltas = (torch.tensor(x, requires_grad=True) for x in (logits, deltas))
    wanted = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(
        torch.as_tensor(targets), torch.as_tensor(anchors)
    )
    positive = foreground & valid
    expected = F.binary_cross_entropy_with_logits(
        t_logits[valid], torch.as_tensor(foreground[valid]).float(), reduction="sum"
    ) + 2 * F.l1_loss(t_deltas[positive], wanted[positive], reduction="sum")
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(grads[0], t_logits.grad, atol=1e-6)
    np.testing.assert_allclose(grads[1], t_deltas.grad, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_smooth_l1_and_its_gradient_equal_torch(beta):
    rng = np.random.default_rng(4)
    prediction, target = rng.normal(size=(2, COUNT, 4)).astype(np.float32)
    expected_input = torch.tensor(prediction, requires_grad=True)
    expected = F.smooth_l1_loss(expected_input, torch.tensor(target), reduction="none", beta=beta)
    expected.sum().backward()
    value, gradient = jax.value_and_grad(lambda x: smooth_l1(x, target, beta).sum())(prediction)
    np.testing.assert_allclose(value, expected.sum().item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_input.grad, atol=1e-6)
    rows = expected.sum(1).detach()
    np.testing.assert_allclose(smooth_l1(prediction, target, beta), rows, atol=1e-5)


def test_sampled_anchors_carry_their_object():
    rng = np.random.default_rng(5)
    objects = np.array([[0, 0, 40, 40], [50, 50, 90, 80], [0, 0, 0, 0]], np.float32)
    valid = np.array([True, True, False])
    near = objects[rng.integers(0, 2, 30)] + rng.uniform(-2, 2, (30, 4))
    between = np.tile(np.float32([[0, 0, 20, 40]]), (10, 1))  # IoU 0.5: neither
    anchors = np.concatenate([near, random_boxes(rng, 60) + 200, between]).astype(np.float32)
    config = LossConfig(rpn_batch=40)
    labels = np.zeros(3, np.int32)
    index, boxes, foreground, kept = sample_anchors(
        jax.random.key(0), anchors, Objects(objects, labels, valid), config=config
    )
    assert bool(kept.all()) and int(foreground.sum()) == 20 and len(set(index.tolist())) == 40
    for anchor, box, one in zip(anchors[np.asarray(index)], boxes, foreground, strict=True):
        assert (np.abs(anchor - box).max() <= 2) if one else (anchor >= 200).all()


def test_the_official_matcher_keeps_three_rois_per_object():
    rng = np.random.default_rng(6)
    truth = np.array([[0, 0, 40, 40], [60, 60, 100, 100]], np.float32)
    candidates = (truth[rng.integers(0, 2, 40)] + rng.uniform(-3, 3, (40, 4))).astype(np.float32)
    counts = {}
    for top_k in (None, 3):
        config = LossConfig(roi_batch=40, roi_foreground=1.0, roi_top_k=top_k)
        objects = Objects(truth, np.array([1, 2]), np.ones(2, bool))
        options = {"usable": np.ones(40, bool), "classes": CLASSES, "config": config}
        _, _, label, _ = sample_rois(jax.random.key(0), candidates, objects, **options)
        counts[top_k] = [int((label == c).sum()) for c in (1, 2, CLASSES)]
    assert counts[3] == [3, 3, 34] and counts[None][2] == 0


def test_sampled_rois_carry_the_box_and_label_of_their_object():
    rng = np.random.default_rng(3)
    objects = np.array([[0, 0, 40, 40], [50, 50, 90, 80], [0, 0, 0, 0]], np.float32)
    valid, labels = np.array([True, True, False]), np.array([2, 0, 0])
    near = objects[rng.integers(0, 2, 20)] + rng.uniform(-4, 4, (20, 4))
    far = random_boxes(rng, 40) + 200
    candidates = np.concatenate([near, far, near]).astype(np.float32)
    usable = np.arange(80) < 60  # the last 20 would be foreground
    config = LossConfig(roi_batch=32, roi_foreground=0.25)
    rois, boxes, label, kept = sample_rois(
        jax.random.key(0),
        candidates,
        Objects(objects, labels, valid),
        usable=usable,
        classes=CLASSES,
        config=config,
    )
    assert bool(kept.all()) and int((label < CLASSES).sum()) == 8
    for roi, box, one in zip(rois, boxes, label, strict=True):
        if one < CLASSES:
            which = int(np.argmax(labels == int(one)))
            np.testing.assert_array_equal(box, objects[which])
            assert np.abs(roi - box).max() <= 4
        else:
            assert (roi >= 200).all()
