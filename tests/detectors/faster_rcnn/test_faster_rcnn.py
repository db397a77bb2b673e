"""Faster R-CNN's parts against torchvision's, and its loss against a loop."""

import bridge.runtime.torchvision_ops  # noqa: F401

# isort: split
import functools
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.models.detection.rpn import RPNHead as TorchRPNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from weaksam_jax.backbones.fpn import FPN
from weaksam_jax.boxes import encode, iou
from weaksam_jax.detectors.faster_rcnn import FasterRcnnConfig
from weaksam_jax.detectors.faster_rcnn.config import DropConfig, LossConfig
from weaksam_jax.detectors.faster_rcnn.loss import faster_rcnn_loss
from weaksam_jax.detectors.faster_rcnn.model import BoxHead, FasterRcnnNetwork, RPNHead
from weaksam_jax.detectors.faster_rcnn.predict import detect, select_detections
from weaksam_jax.ops.proposals import select_proposals

CLASSES = 3
KEYS = jax.random.split(jax.random.key(0), 2)  # of the images
TEST = FasterRcnnConfig().test


def to_torch(x):
    return torch.as_tensor(np.array(x))


def copy_conv(layer, params):
    layer.weight.data = to_torch(params["kernel"]).permute(3, 2, 0, 1).contiguous()
    layer.bias.data = to_torch(params["bias"])


def copy_dense(layer, params):
    layer.weight.data = to_torch(params["kernel"]).T.contiguous()
    layer.bias.data = to_torch(params["bias"])


def nchw(x):
    return to_torch(x).permute(0, 3, 1, 2)


def random_boxes(rng, count, limit=80):
    corner = rng.uniform(0, limit * 0.7, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(6, limit * 0.6, (count, 2))], 1).astype(
        np.float32
    )


def pyramid_maps(seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((12, 10, 4), (6, 5, 6), (3, 3, 8))
    return [rng.normal(size=(2, *shape)).astype(np.float32) for shape in shapes]


def test_fpn_equals_torchvision():
    maps = pyramid_maps()
    module = FPN(channels=16, extra_levels=1)
    params = module.init(jax.random.key(0), maps)["params"]
    torch_fpn = FeaturePyramidNetwork([4, 6, 8], 16, LastLevelMaxPool())
    for i in range(3):
        copy_conv(torch_fpn.inner_blocks[i][0], params[f"lateral{i}"])
        copy_conv(torch_fpn.layer_blocks[i][0], params[f"output{i}"])
    expected = torch_fpn({str(i): nchw(x) for i, x in enumerate(maps)})
    levels = module.apply({"params": params}, maps)
    assert len(levels) == len(expected) == 4
    for ours, theirs in zip(levels, expected.values(), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().permute(0, 2, 3, 1), atol=1e-5)


def test_rpn_head_equals_torchvision():
    levels = [x[..., :4] for x in pyramid_maps()]
    module = RPNHead(anchors_per_cell=3)
    params = module.init(jax.random.key(0), levels)["params"]
    head = TorchRPNHead(4, 3)
    copy_conv(head.conv[0][0], params["conv"])
    copy_conv(head.cls_logits, params["objectness"])
    copy_conv(head.bbox_pred, params["deltas"])
    logits, deltas = concat_box_prediction_layers(*head([nchw(x) for x in levels]))
    ours = module.apply({"params": params}, levels)
    np.testing.assert_allclose(
        jnp.concatenate(ours[0], 1).reshape(-1), logits.detach()[:, 0], atol=1e-6
    )
    np.testing.assert_allclose(
        jnp.concatenate(ours[1], 1).reshape(-1, 4), deltas.detach(), atol=1e-6
    )


def test_box_head_equals_torchvision():
    pooled = np.random.default_rng(0).normal(size=(6, 7, 7, 5)).astype(np.float32)
    module = BoxHead(CLASSES, fc_width=12)
    params = module.init(jax.random.key(0), pooled)["params"]
    head, predictor = TwoMLPHead(5 * 49, 12), FastRCNNPredictor(12, CLASSES)
    for name, layer in (("fc1", head.fc6), ("fc2", head.fc7), ("box", predictor.bbox_pred)):
        copy_dense(layer, params[name])
    predictor.cls_score = torch.nn.Linear(12, CLASSES + 1)
    copy_dense(predictor.cls_score, params["cls"])
    # (height, width, channel) inputs here, (channel, height, width) there
    order = np.arange(5 * 49).reshape(7, 7, 5).transpose(2, 0, 1).reshape(-1)
    head.fc6.weight.data = head.fc6.weight.data[:, order]
    logits, deltas = predictor(head(nchw(pooled)))
    ours = module.apply({"params": params}, pooled)
    np.testing.assert_allclose(ours[0], logits.detach(), atol=1e-6)
    np.testing.assert_allclose(ours[1].reshape(6, -1), deltas.detach(), atol=1e-6)


@pytest.mark.parametrize(("pre_nms", "post_nms"), [(60, 40), (20, 100), (500, 15)])
def test_proposals_equal_torchvision(pre_nms, post_nms):
    rng = np.random.default_rng(1)
    anchors = [random_boxes(rng, n) for n in (150, 60, 15)]
    logits = [rng.normal(size=len(a)).astype(np.float32) for a in anchors]
    deltas = [rng.normal(size=a.shape).astype(np.float32) * 0.5 for a in anchors]
    anchors[0][:5] += 200  # outside the image: empty after clipping
    sizes = jnp.array([70.0, 64.0])
    select = functools.partial(select_proposals, pre_nms=pre_nms, post_nms=post_nms)
    boxes, scores, valid = jax.jit(select)(logits, deltas, anchors, sizes)
    rpn = RegionProposalNetwork(
        None, None, 0.7, 0.3, 1, 0.5,
        {"training": pre_nms, "testing": pre_nms}, {"training": post_nms, "testing": post_nms}, 0.7,
    )  # fmt: skip
    decoded = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode(
        to_torch(np.concatenate(deltas)), [to_torch(np.concatenate(anchors))]
    )
    expected, expected_scores = rpn.filter_proposals(
        decoded.reshape(1, -1, 4), to_torch(np.concatenate(logits))[:, None], [(70, 64)],
        [len(a) for a in anchors],
    )  # fmt: skip
    count = int(valid.sum())
    assert count == len(expected[0]) and bool(valid[:count].all())
    np.testing.assert_allclose(boxes[:count], expected[0], atol=1e-4)
    np.testing.assert_allclose(jax.nn.sigmoid(scores[:count]), expected_scores[0], atol=1e-6)
    np.testing.assert_array_equal(boxes[count:], 0)


def test_detections_equal_torchvision():
    rng = np.random.default_rng(2)
    boxes = random_boxes(rng, 60)
    logits = rng.normal(size=(60, CLASSES + 1)).astype(np.float32) * 2
    deltas = rng.normal(size=(60, CLASSES, 4)).astype(np.float32)
    deltas[:20, 1, :2] = 200  # moved out of the image: no detections
    valid = np.arange(60) < 50
    config = replace(TEST, score_threshold=0.2, max_detections=25)
    size = jnp.array([72.0, 66.0])
    ours = select_detections(logits, deltas, boxes, valid=valid, size=size, config=config)
    heads = RoIHeads(None, None, None, 0.5, 0.5, 1, 0.25, (10.0, 10.0, 5.0, 5.0), 0.2, 0.5, 25)
    first = np.concatenate([logits[:, -1:], logits[:, :-1]], 1)[:50]  # background first
    theirs_deltas = np.concatenate([np.zeros((60, 1, 4), np.float32), deltas], 1)[:50]
    expected = heads.postprocess_detections(
        to_torch(first), to_torch(theirs_deltas.reshape(50, -1)), [to_torch(boxes[:50])], [(72, 66)]
    )
    count = int(ours.valid.sum())
    assert count == len(expected[0][0]) and 5 < count <= 25
    np.testing.assert_allclose(ours.boxes[:count], expected[0][0], atol=1e-3)
    np.testing.assert_allclose(ours.scores[:count], expected[1][0], atol=1e-6)
    np.testing.assert_array_equal(ours.labels[:count] + 1, expected[2][0])


class Trunk(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), (4, 4))(x))
        x = nn.relu(nn.Conv(8, (3, 3), (2, 2))(x))
        return x, nn.relu(nn.Conv(8, (3, 3), (2, 2))(x))


def small_detector():
    model = FasterRcnnNetwork(
        Trunk(), CLASSES, strides=(8, 16, 32), anchor_sizes=((16,), (32,), (48,)), channels=8,
        extra_levels=1, fc_width=16, canonical_size=32, canonical_level=1,
    )  # fmt: skip
    rng = np.random.default_rng(4)
    boxes = np.stack([random_boxes(rng, 5, 64) for _ in range(2)])
    batch = {
        "image": rng.normal(size=(2, 64, 96, 3)).astype(np.float32),
        "size": np.array([[64, 96], [60, 80]], np.float32),
        "boxes": np.minimum(boxes, np.array([80, 60, 80, 60], np.float32)),
        "labels": rng.integers(0, CLASSES, (2, 5)).astype(np.int32),
        "valid": np.arange(5)[None] < np.array([[5], [2]]),
    }
    params = jax.jit(model.init)(jax.random.key(0), batch["image"], batch["boxes"])["params"]
    # Heads of some size, so that proposals and class scores are not all alike.
    params["rpn"] = jax.tree.map(lambda x: 10 * x, params["rpn"])
    return model, params, batch


def loop_rpn_terms(model, logits, deltas, anchors, batch):
    """All anchors sampled: the two RPN sums over the batch, an anchor at a time."""
    objectness = box = 0.0
    for image in range(2):
        truth = batch["boxes"][image][batch["valid"][image]]
        overlap = iou(anchors, truth)
        best = overlap.max(0)
        for i in range(len(anchors)):
            positive = overlap[i].max() >= 0.7 or any((overlap[i] == best) & (best > 0))
            if not positive and overlap[i].max() >= 0.3:
                continue
            z = logits[image, i]
            objectness += np.log1p(np.exp(-z if positive else z))
            if positive:
                target = encode(truth[overlap[i].argmax()], anchors[i], (1.0, 1.0, 1.0, 1.0))
                box += np.abs(deltas[image, i] - target).sum()
    return objectness, box


def loop_roi_terms(model, params, levels, batch, proposals, drop):
    """All RoIs sampled: losses of each, an image at a time, dropped by equation 1."""
    cls, box, count = 0.0, 0.0, 0
    for image in range(2):
        truth = batch["boxes"][image][batch["valid"][image]]
        labels = batch["labels"][image][batch["valid"][image]]
        rois = np.concatenate([proposals[image], truth])
        one = [level[image : image + 1] for level in levels]
        logits, deltas = jax.jit(lambda *x: model.apply({"params": params}, *x, method="classify"))(
            one, rois[None]
        )
        chance, deltas = np.asarray(jax.nn.softmax(logits[0])), np.asarray(deltas)
        for r, roi in enumerate(rois):
            overlap = iou(roi[None], truth)[0]
            best = overlap.argmax()
            foreground = overlap[best] >= 0.5
            label = labels[best] if foreground else CLASSES
            l_cls, l_reg = -np.log(chance[r, label]), 0.0
            if foreground:
                l_reg = np.abs(deltas[0, r, label] - encode(truth[best], roi)).sum()
            keep = drop is None or (l_cls <= drop.tau_cls and l_reg <= drop.tau_reg)
            cls, box, count = cls + keep * l_cls, box + keep * l_reg, count + 1
    return cls / count, box / count


# ln 4: about the cross entropy of every RoI at the start, so that some are dropped and some kept.
@pytest.mark.parametrize("drop", [None, DropConfig(tau_cls=1.386, tau_reg=7.0, start=3)])
def test_loss_equals_a_loop(drop):
    model, params, batch = small_detector()
    variables = {"params": params}
    levels = model.apply(variables, batch["image"], method="pyramid")
    logits, deltas = model.apply(variables, levels, method="propose")
    anchors = model.anchors(levels)
    total = sum(len(a) for a in anchors)
    # Batches so large that every anchor and every RoI is sampled: no randomness is left.
    config = LossConfig(
        rpn_batch=total, rpn_foreground=1.0, pre_nms=50, post_nms=30, roi_batch=35,
        roi_foreground=1.0, drop=drop,
    )  # fmt: skip
    loss, metrics = jax.jit(
        lambda params: faster_rcnn_loss(
            model, params, batch, keys=KEYS, step=jnp.int32(3), config=config
        )
    )(params)
    objectness, box = loop_rpn_terms(
        model, np.concatenate(logits, 1), np.concatenate(deltas, 1), np.concatenate(anchors), batch
    )
    np.testing.assert_allclose(metrics["rpn_cls"], objectness / (2 * total), rtol=1e-4)
    np.testing.assert_allclose(metrics["rpn_box"], box / (2 * total), rtol=1e-4)
    proposals = []
    select = jax.jit(functools.partial(select_proposals, pre_nms=50, post_nms=30))
    for image in range(2):
        own = [[level[image] for level in one] for one in (logits, deltas)]
        found, _, valid = select(*own, anchors, batch["size"][image])
        proposals.append(np.asarray(found)[np.asarray(valid)])
    cls, box = loop_roi_terms(model, params, levels, batch, proposals, drop)
    np.testing.assert_allclose(metrics["cls"], cls, rtol=1e-4)
    np.testing.assert_allclose(metrics["box"], box, rtol=1e-4)
    terms = [metrics[name] for name in ("rpn_cls", "rpn_box", "cls", "box")]
    np.testing.assert_allclose(loss, sum(terms), rtol=1e-6)
    if drop is not None:
        dropped = metrics["dropped_foreground"] + metrics["dropped_background"]
        assert 0 < dropped < 2, "some RoIs are dropped, and not all of them"


def test_gradient_reaches_every_parameter_but_not_the_rpn_through_proposals():
    model, params, batch = small_detector()
    config = LossConfig(rpn_batch=64, pre_nms=50, post_nms=30, roi_batch=24, drop=None)

    def term(params, names):
        _, metrics = faster_rcnn_loss(
            model, params, batch, keys=KEYS, step=jnp.int32(0), config=config
        )
        return jnp.stack([sum(metrics[name] for name in group) for group in names])

    groups = (("rpn_cls", "rpn_box", "cls", "box"), ("cls", "box"))
    jacobian = jax.jit(jax.jacrev(lambda params: term(params, groups)))(params)
    everything = jax.tree.map(lambda x: x[0], jacobian)
    heads = jax.tree.map(lambda x: x[1], jacobian)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(everything))
    assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(heads["rpn"]))


def test_images_of_a_batch_and_their_padding_do_not_touch_each_other():
    model, params, batch = small_detector()

    config = replace(TEST, pre_nms=50, post_nms=30, score_threshold=0.05)

    def run(images, sizes):
        return jax.jit(lambda i, s: detect(model, params, i, size=s, config=config))(images, sizes)

    both = run(batch["image"], batch["size"])
    alone = run(batch["image"][1:], batch["size"][1:])
    for one, pair in zip(alone[:4], both[:4], strict=True):
        np.testing.assert_allclose(one[0], pair[1], atol=1e-4)
    assert alone.masks is None and both.masks is None
    boxes, valid = np.asarray(both.boxes[1]), np.asarray(both.valid[1])
    assert valid.any() and (boxes[valid] <= [80, 60, 80, 60]).all() and (boxes >= 0).all()
