"""Losses of Faster R-CNN, a value per sample, so that a drop mask can multiply them."""

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from weaksam_jax.boxes import RPN_WEIGHTS, encode
from weaksam_jax.losses.drop import roi_drop
from weaksam_jax.ops.matching import FOREGROUND, match_by_iou
from weaksam_jax.ops.proposals import select_proposals
from weaksam_jax.ops.sampling import sample_balanced

_KINDS = ("foreground", "background")


@dataclass(frozen=True)
class DropSettings:
    """RoI drop (equations 1-2). Defaults: the paper; start: step from which RoIs are dropped.

    rule: "either" (paper) or "both" (released code); normaliser: the divisor of both losses, the
    sampled RoIs (`n_valid`) or those kept (`n_kept`).
    """

    tau_cls: float = 4.0
    tau_reg: float = 1.0
    start: int = 2000
    rule: Literal["either", "both"] = "either"
    background: bool = True
    normaliser: Literal["n_valid", "n_kept"] = "n_valid"


@dataclass(frozen=True)
class DetectionSettings:
    """Matching and sampling of Faster R-CNN. Defaults: detectron2's R50-FPN.

    rpn_batch anchors an image, at most rpn_foreground of them foreground (IoU >= rpn_iou[1], or
    best of an object), background below rpn_iou[0]. pre_nms proposals a level, post_nms an image.
    roi_batch RoIs an image, at most roi_foreground of them foreground (IoU >= roi_iou).
    roi_top_k=3 is the matcher of the released WeakSAM code (`match_by_iou`). smooth_l1_beta: 0 is
    L1; torchvision has 1 / 9.
    """

    rpn_batch: int = 256
    rpn_foreground: float = 0.5
    rpn_iou: tuple[float, float] = (0.3, 0.7)
    pre_nms: int = 2000
    post_nms: int = 1000
    roi_batch: int = 512
    roi_foreground: float = 0.25
    roi_iou: float = 0.5
    roi_top_k: int | None = None
    smooth_l1_beta: float = 0.0


def smooth_l1(prediction: jax.Array, target: jax.Array, beta: float = 0.0) -> jax.Array:
    """Fast R-CNN's equation 3 summed over the last axis; below `beta` quadratic, 0: plain L1."""
    distance = jnp.abs(prediction - target)
    if beta > 0:
        near = 0.5 * distance**2 / beta
        distance = jnp.where(distance < beta, near, distance - 0.5 * beta)
    return jnp.sum(distance, axis=-1)


def rpn_losses(
    logits: jax.Array,
    deltas: jax.Array,
    anchors: jax.Array,
    targets: jax.Array,
    foreground: jax.Array,
    valid: jax.Array,
    beta: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Sums over S sampled anchors: (binary cross-entropy, `smooth_l1` of foreground deltas).

    logits `[S]`, deltas, anchors, targets `[S, 4]`, foreground and valid bool `[S]`. Divide both by
    (anchors sampled per image * images) (detectron2; Faster R-CNN equation 1 with lambda = 1).
    """
    objectness = optax.sigmoid_binary_cross_entropy(logits, foreground.astype(logits.dtype))
    box = smooth_l1(deltas, encode(targets, anchors, RPN_WEIGHTS), beta)
    positive = foreground & valid
    return jnp.sum(jnp.where(valid, objectness, 0)), jnp.sum(jnp.where(positive, box, 0))


def roi_losses(
    class_logits: jax.Array,
    deltas: jax.Array,
    labels: jax.Array,
    boxes: jax.Array,
    targets: jax.Array,
    beta: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Losses of each RoI: (cross-entropy `[R]`, `smooth_l1` over its four deltas `[R]`, 0 for
    background).

    class_logits `[R, C + 1]`, background last; deltas `[R, C, 4]`, class-specific, weighted
    (10, 10, 5, 5); labels int `[R]` in [0, C], C = background; boxes, targets `[R, 4]`.
    """
    classes = deltas.shape[1]
    cls_loss = optax.softmax_cross_entropy_with_integer_labels(class_logits, labels)
    own = jnp.take_along_axis(deltas, jnp.minimum(labels, classes - 1)[:, None, None], axis=1)[:, 0]
    reg_loss = smooth_l1(own, encode(targets, boxes), beta)
    return cls_loss, jnp.where(labels < classes, reg_loss, 0)


def dropped_sums(
    cls_loss: jax.Array,
    reg_loss: jax.Array,
    foreground: jax.Array,
    valid: jax.Array,
    active: jax.Array,
    tau_cls: float,
    tau_reg: float,
    rule: str = "either",
    drop_background: bool = True,
) -> dict[str, jax.Array]:
    """Numerators of equation 2 and the counts for its denominators and the log.

    cls_loss, reg_loss, foreground, valid: `[R]` (`roi_losses`); active: bool scalar, False before
    the start step, when nothing is dropped. Returns float32 scalars: `cls`, `reg` (sums of d * l),
    `n_valid`, `n_kept`, `foreground`, `background` (counts of valid RoIs), `dropped_foreground`,
    `dropped_background`.
    """
    keep = roi_drop(cls_loss, reg_loss, foreground, valid, tau_cls, tau_reg, rule, drop_background)
    keep = jnp.where(active, keep, valid)
    d = keep.astype(cls_loss.dtype)  # a product, so that a NaN loss is not hidden
    positive, negative = foreground & valid, ~foreground & valid
    return {
        "cls": jnp.sum(jnp.where(valid, cls_loss, 0) * d),
        "reg": jnp.sum(jnp.where(positive, reg_loss, 0) * d),
        "n_valid": _count(valid),
        "n_kept": _count(keep),
        "foreground": _count(positive),
        "background": _count(negative),
        "dropped_foreground": _count(positive & ~keep),
        "dropped_background": _count(negative & ~keep),
    }


def _count(mask: jax.Array) -> jax.Array:
    return jnp.sum(mask, dtype=jnp.float32)


def faster_rcnn_loss(
    model,
    params: dict,
    batch: dict[str, jax.Array],
    step: jax.Array,
    rng: jax.Array,
    settings: DetectionSettings,
    drop: DropSettings | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The four losses of Faster R-CNN, equally weighted, with RoI drop (equation 2).

    model: a `FasterRCNN`. batch: `image` float `[B, H, W, 3]`, normalised; `size` `[B, 2]` (height,
    width) within the canvas; `boxes` `[B, G, 4]`; `labels` int `[B, G]`; `valid` bool `[B, G]`.
    step: int scalar; dropping is active from `drop.start` (None: never). rng: image i samples its
    anchors with `split(rng, B)[i]` and its RoIs with `fold_in(split(rng, B)[i], 1)`. axis_name: the
    mesh axis over which the RoIs are counted. Returns (loss, metrics): the terms, and with drop the
    dropped shares of foreground and background RoIs. No gradient flows through the proposals.
    """
    images = batch["image"].shape[0]
    levels, logits, deltas, anchors = _propose(model, params, batch["image"])
    every_anchor = jnp.concatenate(anchors)
    keys = jax.random.split(rng, images)
    truth = (batch["boxes"], batch["valid"])

    def rpn_one(key, logits, deltas, boxes, valid):
        chosen, *targets = sample_anchors(key, every_anchor, boxes, valid, settings)
        sampled = (logits[chosen], deltas[chosen], every_anchor[chosen])
        return rpn_losses(*sampled, *targets, settings.smooth_l1_beta)

    flat = (jnp.concatenate(logits, axis=1), jnp.concatenate(deltas, axis=1))
    rpn_cls, rpn_box = jax.vmap(rpn_one)(keys, *flat, *truth)

    rois = _score_rois(model, params, (levels, logits, deltas, anchors), keys, batch, settings)
    flat = [x.reshape(-1) for x in (rois.cls, rois.reg, rois.foreground, rois.valid)]
    roi_terms, metrics = roi_objective(*flat, step, drop, axis_name)
    terms = {
        "rpn_cls": jnp.sum(rpn_cls) / (settings.rpn_batch * images),
        "rpn_box": jnp.sum(rpn_box) / (settings.rpn_batch * images),
        **roi_terms,
    }
    return sum(terms.values()), {**terms, **metrics}


class RoiLosses(NamedTuple):
    """Raw losses of the RoIs sampled from each image, `[B, R]`, and the box each was assigned.

    cls, reg: float32 (`roi_losses`); foreground, valid: bool; labels: int32, the background last;
    targets: `[B, R, 4]`, pixels of the canvas.
    """

    cls: jax.Array
    reg: jax.Array
    foreground: jax.Array
    valid: jax.Array
    labels: jax.Array
    targets: jax.Array


def sampled_roi_losses(
    model, params: dict, batch: dict[str, jax.Array], rng: jax.Array, settings: DetectionSettings
) -> RoiLosses:
    """The RoIs that `faster_rcnn_loss` would train on with these arguments, and their losses."""
    keys = jax.random.split(rng, batch["image"].shape[0])
    found = _propose(model, params, batch["image"])
    return _score_rois(model, params, found, keys, batch, settings)


def _propose(model, params, images):
    """(pyramid levels, RPN logits, RPN deltas, anchors), a list over the levels each."""
    levels = model.apply({"params": params}, images, method="pyramid")
    logits, deltas = model.apply({"params": params}, levels, method="propose")
    return levels, logits, deltas, [jnp.asarray(one) for one in model.anchors(levels)]


def _score_rois(model, params, proposed, keys, batch, settings) -> RoiLosses:
    levels, logits, deltas, anchors = proposed
    truth = (batch["boxes"], batch["valid"])

    def sample_one(key, logits, deltas, size, boxes, valid, labels):
        proposals, _, proposal_valid = select_proposals(
            logits, deltas, anchors, size, settings.pre_nms, settings.post_nms
        )
        candidates = jnp.concatenate([proposals, boxes])  # the objects themselves are candidates
        usable = jnp.concatenate([proposal_valid, valid])
        return sample_rois(
            jax.random.fold_in(key, 1), candidates, usable, boxes, valid, labels, model.classes,
            settings,
        )  # fmt: skip

    rois, targets, labels, valid = jax.vmap(sample_one)(
        keys, logits, deltas, batch["size"], *truth, batch["labels"]
    )
    scored = model.apply({"params": params}, levels, rois, method="classify")
    per_image = jax.vmap(functools.partial(roi_losses, beta=settings.smooth_l1_beta))
    cls_loss, reg_loss = per_image(*scored, labels, rois, targets)
    return RoiLosses(cls_loss, reg_loss, labels < model.classes, valid, labels, targets)


def roi_objective(
    cls_loss: jax.Array,
    reg_loss: jax.Array,
    foreground: jax.Array,
    valid: jax.Array,
    step: jax.Array,
    drop: DropSettings | None,
    axis_name: str | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Equation 2 over all RoIs `[R]` of the batch: ({"cls", "box"} terms, metrics).

    The metrics are shares of RoIs over all devices (an `axis_name`), not means of the devices' own.
    """
    options = drop or DropSettings()
    active = jnp.asarray(drop is not None) & (step >= options.start)
    sums = dropped_sums(
        cls_loss, reg_loss, foreground, valid, active,
        options.tau_cls, options.tau_reg, options.rule, options.background,
    )  # fmt: skip
    counts = {name: value for name, value in sums.items() if name not in ("cls", "reg")}
    if axis_name is not None:
        counts = jax.lax.pmean(counts, axis_name)
    shares = {"foreground_rois": ("foreground", "n_valid")}
    if drop is not None:
        shares |= {f"dropped_{name}": (f"dropped_{name}", name) for name in _KINDS}
    # A mean count over devices may be below 1 and still not be 0.
    metrics = {
        name: counts[part] / jnp.where(counts[whole] > 0, counts[whole], 1.0)
        for name, (part, whole) in shares.items()
    }
    count = jnp.maximum(counts[options.normaliser], 1.0)
    return {"cls": sums["cls"] / count, "box": sums["reg"] / count}, metrics


def sample_anchors(
    key: jax.Array,
    anchors: jax.Array,
    boxes: jax.Array,
    valid: jax.Array,
    settings: DetectionSettings,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Training anchors of one image out of anchors `[N, 4]`; boxes `[G, 4]`, valid `[G]`: objects.

    Returns (index int32 `[S]`, the box each one answers for `[S, 4]`, foreground bool `[S]`, valid
    bool `[S]`).
    """
    label, index = match_by_iou(
        anchors, boxes, valid, settings.rpn_iou[1], settings.rpn_iou[0], best_per_target=True
    )
    chosen, usable = sample_balanced(label, key, settings.rpn_batch, settings.rpn_foreground)
    return chosen, boxes[index[chosen]], label[chosen] == FOREGROUND, usable


def sample_rois(
    key: jax.Array,
    candidates: jax.Array,
    usable: jax.Array,
    boxes: jax.Array,
    valid: jax.Array,
    labels: jax.Array,
    classes: int,
    settings: DetectionSettings,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Training RoIs of one image out of candidates `[N, 4]` (`usable` bool `[N]`).

    boxes `[G, 4]`, valid `[G]`, labels `[G]`: its objects. Returns (RoIs `[R, 4]`, the box each one
    answers for `[R, 4]`, label int32 `[R]` with `classes` = background, valid bool `[R]`).
    """
    matched, index = match_by_iou(
        candidates, boxes, valid, settings.roi_iou, settings.roi_iou, top_k=settings.roi_top_k
    )
    matched = jnp.where(usable, matched, -1)
    chosen, kept = sample_balanced(matched, key, settings.roi_batch, settings.roi_foreground)
    target = index[chosen]
    label = jnp.where(matched[chosen] == FOREGROUND, labels[target], classes)
    rois = jax.lax.stop_gradient(candidates[chosen])
    return rois, boxes[target], label.astype(jnp.int32), kept
