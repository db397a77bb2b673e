"""Detection losses against PyTorch, values and gradients."""

import bridge.torchvision_ops  # noqa: F401

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import fastrcnn_loss

from weaksam_jax.losses.detection import (
    DetectionSettings,
    roi_losses,
    rpn_losses,
    sample_rois,
)

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
        cls_loss, reg_loss = roi_losses(logits, deltas, labels, boxes, targets)
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
    _, reg_loss = roi_losses(logits, deltas, labels, boxes, targets)
    np.testing.assert_array_equal(np.asarray(reg_loss) > 0, labels < CLASSES)


def test_rpn_losses_and_gradients_equal_torch():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=COUNT).astype(np.float32) * 3
    deltas = rng.normal(size=(COUNT, 4)).astype(np.float32)
    anchors, targets = random_boxes(rng, COUNT), random_boxes(rng, COUNT)
    foreground, valid = rng.random(COUNT) < 0.4, rng.random(COUNT) < 0.8

    def total(logits, deltas):
        objectness, box = rpn_losses(logits, deltas, anchors, targets, foreground, valid)
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


def test_sampled_rois_carry_the_box_and_label_of_their_object():
    rng = np.random.default_rng(3)
    objects = np.array([[0, 0, 40, 40], [50, 50, 90, 80], [0, 0, 0, 0]], np.float32)
    valid, labels = np.array([True, True, False]), np.array([2, 0, 0])
    near = objects[rng.integers(0, 2, 20)] + rng.uniform(-4, 4, (20, 4))
    far = random_boxes(rng, 40) + 200
    candidates = np.concatenate([near, far, near]).astype(np.float32)
    usable = np.arange(80) < 60  # the last 20 would be foreground
    settings = DetectionSettings(roi_batch=32, roi_foreground=0.25)
    rois, boxes, label, kept = sample_rois(
        jax.random.key(0), candidates, usable, objects, valid, labels, CLASSES, settings
    )
    assert bool(kept.all()) and int((label < CLASSES).sum()) == 8
    for roi, box, one in zip(rois, boxes, label, strict=True):
        if one < CLASSES:
            which = int(np.argmax(labels == int(one)))
            np.testing.assert_array_equal(box, objects[which])
            assert np.abs(roi - box).max() <= 4
        else:
            assert (roi >= 200).all()
