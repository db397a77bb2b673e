"""The whole Faster R-CNN R50-FPN against torchvision's with the same seeded random weights.

Of the differences between torchvision and detectron2, whose constants are our defaults, four are
options that this test sets: rounded anchors, RoIAlign without the half-pixel shift, smooth L1 with
beta 1/9, and the number of proposals. Two need a fitting case: torchvision divides the RPN's losses
by the anchors it sampled, detectron2 by the anchors it may sample (here all are sampled), and it
derives strides from the sizes of the padded image and its maps, so that P6's is 64 only where the
padded size is a multiple of 64. It drops boxes with a side below 1e-3 (proposals) and 1e-2
(detections), we drop empty ones: none of the boxes here lies between.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_torchvision import numpy_state, small_faster_rcnn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from bridge.weights.faster_rcnn_torchvision import TORCHVISION
from bridge.weights.r50_fpn import to_ours
from weaksam_jax.backbones.resnet import ResNet50
from weaksam_jax.detectors.faster_rcnn import FasterRcnn, FasterRcnnConfig
from weaksam_jax.detectors.faster_rcnn.config import LossConfig
from weaksam_jax.detectors.faster_rcnn.loss import faster_rcnn_loss
from weaksam_jax.detectors.faster_rcnn.model import FasterRcnnNetwork
from weaksam_jax.detectors.faster_rcnn.predict import detect
from weaksam_jax.detectors.faster_rcnn.recipes import voc07
from weaksam_jax.engine.optimizer import freeze
from weaksam_jax.engine.step import count_compilations
from weaksam_jax.engine.weights import flatten, unflatten
from weaksam_jax.ops.matching import match_by_iou, pyramid_level
from weaksam_jax.ops.proposals import select_proposals
from weaksam_jax.ops.sampling import sample_balanced

WIDTH, CHANNELS, CLASSES, FC = 4, 8, 3, 24
ANCHOR_SIZES = ((16,), (24,), (40,), (64,), (96,))
CANONICAL = 40  # pixels at P4, so that RoIs of small images are pooled from all levels
PRE_NMS, POST_NMS, RPN_BATCH, ROI_BATCH, DETECTIONS, SCORE = 60, 180, 64, 32, 20, 0.2
# (seed of the weights, padded size, sizes of the images); sides of the second leave odd maps at
# strides 32 and 64.
PLAIN = (0, (128, 192), [(128, 192), (120, 160)])
ODD = (11, (96, 160), [(93, 160), (96, 71)])
KEYS = jax.random.split(jax.random.key(5), 2)  # of the images
TEST = replace(
    FasterRcnnConfig().test,
    pre_nms=PRE_NMS,
    post_nms=POST_NMS,
    score_threshold=SCORE,
    max_detections=DETECTIONS,
)
# Frozen norms, as in every training; no frozen stage.
DETECTOR = FasterRcnn(replace(voc07(), optim=replace(voc07().optim, frozen=())), CLASSES)


@pytest.fixture(scope="module")
def case():
    return make_case(*PLAIN)


def make_case(seed, padded, sizes):
    """(torchvision's model, ours, our parameters, a batch)."""
    theirs = small_faster_rcnn(
        WIDTH, CHANNELS, CLASSES, ANCHOR_SIZES, FC, seed,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2, canonical_scale=CANONICAL),
        rpn_pre_nms_top_n_train=PRE_NMS, rpn_pre_nms_top_n_test=PRE_NMS,
        rpn_post_nms_top_n_train=POST_NMS, rpn_post_nms_top_n_test=POST_NMS,
        rpn_batch_size_per_image=RPN_BATCH, box_batch_size_per_image=ROI_BATCH,
        box_detections_per_img=DETECTIONS, box_score_thresh=SCORE,
    )  # fmt: skip
    with torch.no_grad():
        theirs.rpn.head.bbox_pred.weight *= 0.2  # proposals near their anchors: some foreground
        theirs.rpn.head.cls_logits.weight *= 0.4
        # Levels alike, so that proposals of all of them are among the best.
        blocks = theirs.backbone.fpn.layer_blocks
        for block, factor in zip(blocks, (0.2, 0.3, 0.4, 0.8), strict=True):
            block[0].weight *= factor
    params = unflatten(to_ours(numpy_state(theirs), TORCHVISION, "test"))
    return theirs, our_model(), params, a_batch(padded, sizes)


def our_model(dtype=jnp.float32):
    return FasterRcnnNetwork(
        ResNet50(WIDTH, dtype=dtype), CLASSES, anchor_sizes=ANCHOR_SIZES,
        channels=CHANNELS, fc_width=FC, canonical_size=CANONICAL, aligned=False,
        round_anchors=True, dtype=dtype,
    )  # fmt: skip


def a_batch(padded, sizes):
    """Two images of one padded size; six objects and three."""
    rng = np.random.default_rng(3)
    images = np.zeros((2, *padded, 3), np.float32)
    boxes, labels = np.zeros((2, 6, 4), np.float32), np.zeros((2, 6), np.int32)
    valid = np.arange(6) < np.array([[6], [3]])
    for i, (height, width) in enumerate(sizes):
        images[i, :height, :width] = rng.normal(size=(height, width, 3))
        corner = rng.uniform(0, [width * 0.5, height * 0.5], (6, 2))
        side = rng.uniform(15, [width * 0.5, height * 0.5], (6, 2))
        boxes[i, valid[i]] = np.concatenate([corner, corner + side], 1)[valid[i]]
        labels[i, valid[i]] = rng.integers(0, CLASSES, valid[i].sum())
    size = np.asarray(sizes, np.float32)
    return {"image": images, "size": size, "boxes": boxes, "labels": labels, "valid": valid}


def torch_images(batch):
    return ImageList(torch.tensor(batch["image"]).permute(0, 3, 1, 2), sizes_of(batch))


def sizes_of(batch):
    return [(int(height), int(width)) for height, width in batch["size"]]


def close(ours, theirs, tolerance=1e-4):
    """Equal to `tolerance` of the largest value."""
    theirs = np.asarray(theirs.detach() if isinstance(theirs, torch.Tensor) else theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1, np.abs(theirs).max()))


def proposals(model, params, batch):
    """(levels, boxes, logits, valid) of a batch."""
    variables = {"params": params}
    levels = model.apply(variables, batch["image"], method="pyramid")
    logits, deltas = model.apply(variables, levels, method="propose")
    anchors = model.anchors(levels)
    return levels, *jax.vmap(
        lambda logits, deltas, size: select_proposals(
            logits, deltas, anchors, size, pre_nms=PRE_NMS, post_nms=POST_NMS
        )
    )(logits, deltas, batch["size"])


@pytest.mark.parametrize("chosen", [PLAIN, ODD], ids=["plain", "odd"])
def test_proposals_scores_and_detections_equal_torchvisions(chosen):
    theirs, model, params, batch = make_case(*chosen)
    shapes = sizes_of(batch)
    theirs.eval()

    @jax.jit
    def run(params, batch):
        levels, boxes, logits, valid = proposals(model, params, batch)
        variables = {"params": params}
        head = model.apply(variables, levels, boxes, method="classify")
        found = detect(model, params, batch["image"], size=batch["size"], config=TEST)
        return levels, boxes, logits, valid, head, found

    levels, boxes, logits, valid, head, found = run(params, batch)
    class_logits, deltas = head
    images = torch_images(batch)
    with torch.no_grad():
        features = theirs.backbone(images.tensors)
        for ours, level in zip(levels, features.values(), strict=True):
            close(ours, level.permute(0, 2, 3, 1))
        objectness = torch.cat(
            [x.permute(0, 2, 3, 1).flatten(1) for x in theirs.rpn.head(list(features.values()))[0]],
            1,
        )
        expected, _ = theirs.rpn(images, features)
        pooled = theirs.roi_heads.box_roi_pool(features, expected, shapes)
        their_logits, their_deltas = theirs.roi_heads.box_predictor(
            theirs.roi_heads.box_head(pooled)
        )
        detections, _ = theirs.roi_heads(features, expected, shapes)
    start = 0
    for i, wanted in enumerate(expected):
        count = int(valid[i].sum())
        assert count == len(wanted) > 60
        close(boxes[i, :count], wanted)
        assert (np.diff(logits[i, :count]) <= 0).all()
        nearest = np.abs(np.asarray(objectness[i])[:, None] - logits[i, :count]).min(0)
        assert nearest.max() < 1e-4
        pooled_from = set(pyramid_level(wanted.numpy(), 4, CANONICAL).tolist())
        assert pooled_from >= ({0, 1, 2} if chosen is ODD else {0, 1, 2, 3})
        sides = wanted[:, 2:] - wanted[:, :2]
        assert float(sides.min()) > 1e-2
        own = slice(start, start + count)
        start += count
        # Background first there, last here; the deltas of the background are nowhere used.
        close(jnp.roll(class_logits[i, :count], 1, -1), their_logits[own])
        close(deltas[i, :count], their_deltas[own].reshape(count, CLASSES + 1, 4)[:, 1:])
        count = int(found.valid[i].sum())
        assert count == len(detections[i]["boxes"]) > 5
        close(found.boxes[i, :count], detections[i]["boxes"])
        close(found.scores[i, :count], detections[i]["scores"])
        np.testing.assert_array_equal(found.labels[i, :count] + 1, detections[i]["labels"])


class Replay:
    """A sampler for torchvision that draws what ours drew, and sees that its labels agree.

    chosen: for each image the indices and whether each is foreground.
    """

    def __init__(self, chosen):
        self.chosen = chosen

    def __call__(self, labels):
        positive, negative = [], []
        for own, (index, foreground) in zip(labels, self.chosen, strict=True):
            own = own.clamp(max=1)
            np.testing.assert_array_equal(own[index], foreground.astype(int))
            masks = torch.zeros(2, len(own), dtype=torch.uint8)
            masks[foreground.astype(int), index] = 1
            negative.append(masks[0])
            positive.append(masks[1])
        return positive, negative


def replay_samples(model, levels, boxes, valid, batch, config):
    """What `faster_rcnn_loss` samples with KEYS: two `Replay`s, of anchors and of RoIs."""
    anchors = np.concatenate(model.anchors(levels))
    chosen = [], []
    for i, key in enumerate(KEYS):
        truth, real = batch["boxes"][i], batch["valid"][i]
        label, _ = match_by_iou(anchors, truth, real, 0.7, 0.3, best_per_target=True)
        index, kept = sample_balanced(label, key, RPN_BATCH, 0.5)
        assert bool(kept.all())  # so both normalisers are the same
        index = np.array(index)
        chosen[0].append((index, np.array(label)[index] == 1))
        candidates = np.concatenate([boxes[i], truth])
        usable = np.concatenate([valid[i], real])
        label, _ = match_by_iou(candidates, truth, real, 0.5, 0.5)
        label = np.where(usable, label, -1)
        index, kept = sample_balanced(
            label, jax.random.fold_in(key, 1), ROI_BATCH, config.roi_foreground
        )
        index = np.array(index)[np.asarray(kept)]
        # torchvision's candidates are ours without the unused ones.
        chosen[1].append(((np.cumsum(usable) - 1)[index], label[index] == 1))
    return Replay(chosen[0]), Replay(chosen[1])


def test_losses_and_all_gradients_equal_torchvisions(case):
    theirs, model, params, batch = case
    config = LossConfig(
        rpn_batch=RPN_BATCH, pre_nms=PRE_NMS, post_nms=POST_NMS, roi_batch=ROI_BATCH,
        smooth_l1_beta=1 / 9, drop=None,
    )  # fmt: skip

    @jax.jit
    def run(params, batch):
        levels, boxes, _, valid = proposals(model, params, batch)

        def loss(params):
            held = freeze(params, DETECTOR.frozen)
            return faster_rcnn_loss(model, held, batch, keys=KEYS, step=jnp.int32(0), config=config)

        return jax.value_and_grad(loss, has_aux=True)(params), levels, boxes, valid

    ((loss, terms), gradient), levels, boxes, valid = run(params, batch)
    anchors, rois = replay_samples(model, levels, boxes, valid, batch, config)
    assert all(foreground.sum() > 2 for _, foreground in anchors.chosen + rois.chosen)
    theirs.train()
    theirs.rpn.fg_bg_sampler, theirs.roi_heads.fg_bg_sampler = anchors, rois
    images = torch_images(batch)
    targets = [
        {"boxes": torch.tensor(b[v]), "labels": torch.tensor(n[v] + 1).long()}
        for b, n, v in zip(batch["boxes"], batch["labels"], batch["valid"], strict=True)
    ]
    features = theirs.backbone(images.tensors)
    wanted, rpn_terms = theirs.rpn(images, features, targets)
    _, roi_terms = theirs.roi_heads(features, wanted, sizes_of(batch), targets)
    total = sum(rpn_terms.values()) + sum(roi_terms.values())
    pairs = {
        "rpn_cls": rpn_terms["loss_objectness"],
        "rpn_box": rpn_terms["loss_rpn_box_reg"],
        "cls": roi_terms["loss_classifier"],
        "box": roi_terms["loss_box_reg"],
    }
    for name, value in pairs.items():
        np.testing.assert_allclose(terms[name], value.item(), rtol=1e-4)
        assert value.item() > 0.01
    np.testing.assert_allclose(loss, total.item(), rtol=1e-4)

    total.backward()
    expected = to_ours(numpy_state(theirs, gradients=True), TORCHVISION, "test")
    gradient = flatten(gradient)
    assert set(gradient) == set(expected)
    for name, value in gradient.items():
        if "/norm/" in name:
            assert not np.asarray(value).any()
        else:
            scale = np.abs(expected[name]).max()
            assert scale > 1e-5, name
            np.testing.assert_allclose(value, expected[name], atol=1e-4 * scale, err_msg=name)


def test_bfloat16_is_close_and_returns_float32(case):
    _, model, params, batch = case
    half = our_model(jnp.bfloat16)

    @jax.jit
    def run(params, images, rois):
        heads = []
        for one in (model, half):
            levels = one.apply({"params": params}, images, method="pyramid")
            classified = one.apply({"params": params}, levels, rois, method="classify")
            heads.append(one.apply({"params": params}, levels, method="propose") + classified)
        return heads

    exact, rough = run(params, batch["image"], batch["boxes"])
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rough), strict=True):
        assert b.dtype == jnp.float32
        assert 0 < np.abs(np.asarray(a - b)).mean() < 0.05 * np.std(np.asarray(a))


def test_images_of_every_shape_in_two_padded_sizes_compile_twice(case):
    _, model, params, _ = case
    rng = np.random.default_rng(0)
    padded_sizes = ((64, 96), (96, 64))
    config = replace(TEST, pre_nms=20, post_nms=10, score_threshold=0.05, max_detections=5)

    @jax.jit
    def detect_shapes(params, images, sizes):
        return detect(model, params, images, size=sizes, config=config)

    with count_compilations("detect_shapes") as lines:
        for padded in padded_sizes * 3:
            size = np.asarray([[rng.integers(20, side + 1) for side in padded]], np.float32)
            image = jnp.asarray(rng.normal(size=(1, *padded, 3)), jnp.float32)
            found = detect_shapes(params, image, size)
            limit = np.tile(size[:, ::-1], 2)
            assert bool(found.valid.any()) and (np.asarray(found.boxes[0]) <= limit).all()
    assert len(lines) == 2
