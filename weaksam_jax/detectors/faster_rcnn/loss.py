"""Losses of Faster R-CNN, a value per sample, so that a drop mask can multiply them."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from weaksam_jax.boxes import RPN_WEIGHTS, encode
from weaksam_jax.detectors.faster_rcnn.config import DropConfig, LossConfig
from weaksam_jax.detectors.faster_rcnn.targets import Objects, sample_anchors, sample_rois
from weaksam_jax.losses.drop import roi_drop
from weaksam_jax.losses.smooth_l1 import smooth_l1
from weaksam_jax.ops.proposals import select_proposals

_KINDS = ("foreground", "background")


class RoiLosses(NamedTuple):
    """Raw losses of sampled RoIs, `[R]` each (`[B, R]` of a batch), and what each was assigned.

    cls, reg: float32 (`roi_losses`); foreground, valid: bool; labels: int32, the background last;
    targets: boxes `[R, 4]`, pixels of the input (both None where nobody asks).
    """

    cls: jax.Array
    reg: jax.Array
    foreground: jax.Array
    valid: jax.Array
    labels: jax.Array | None = None
    targets: jax.Array | None = None


class Proposed(NamedTuple):
    """What the RPN says of a batch, a list over the pyramid's levels each: maps `[B, H, W, C]`,
    logits `[B, N]` and deltas `[B, N, 4]` of the anchors `[N, 4]`."""

    levels: Sequence[jax.Array]
    logits: Sequence[jax.Array]
    deltas: Sequence[jax.Array]
    anchors: Sequence[jax.Array]


def faster_rcnn_loss(
    network,
    params: dict,
    batch: dict[str, jax.Array],
    *,
    keys: jax.Array,
    step: jax.Array,
    config: LossConfig,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The four losses of Faster R-CNN, equally weighted, with RoI drop (equation 2).

    network: a `FasterRcnnNetwork`. batch: `image` float `[B, H, W, 3]`, normalised; `size` `[B, 2]`
    (height, width) within the padded size; `boxes` `[B, G, 4]`; `labels` int `[B, G]`; `valid` bool
    `[B, G]`. keys: typed `[B]`; image i samples its anchors with `keys[i]` and its RoIs with
    `fold_in(keys[i], 1)`. step: int scalar; dropping is active from `config.drop.start`.
    axis_name: the mesh axis over which the RoIs are counted. Returns (loss, metrics): the terms,
    and with drop the dropped shares of foreground and background RoIs. No gradient flows through
    the proposals.
    """
    proposed = _propose(network, params, batch["image"])
    rpn_terms = _rpn_terms(proposed, keys, batch, config=config)
    rois = _score_rois(network, params, proposed, keys=keys, batch=batch, config=config)
    flat = RoiLosses(*(x.reshape(-1) for x in rois[:4]))
    roi_terms, metrics = roi_objective(flat, step=step, drop=config.drop, axis_name=axis_name)
    terms = {**rpn_terms, **roi_terms}
    return sum(terms.values()), {**terms, **metrics}


def sampled_roi_losses(
    network,
    params: dict,
    batch: dict[str, jax.Array],
    *,
    keys: jax.Array,
    config: LossConfig,
) -> RoiLosses:
    """The RoIs that `faster_rcnn_loss` would train on with these arguments, and their losses:
    `[B, R]`."""
    proposed = _propose(network, params, batch["image"])
    return _score_rois(network, params, proposed, keys=keys, batch=batch, config=config)


def _propose(network, params: dict, images: jax.Array) -> Proposed:
    levels = network.apply({"params": params}, images, method="pyramid")
    logits, deltas = network.apply({"params": params}, levels, method="propose")
    return Proposed(levels, logits, deltas, anchors=network.anchors(levels))


def _objects(batch: dict[str, jax.Array]) -> Objects:
    return Objects(batch["boxes"], batch["labels"], batch["valid"])


def _rpn_terms(proposed: Proposed, keys, batch, config: LossConfig) -> dict[str, jax.Array]:
    """Both losses of the RPN, over the anchors that are sampled from each image."""
    anchors = jnp.concatenate(proposed.anchors)

    def one_image(key, logits, deltas, objects):
        chosen, targets, foreground, valid = sample_anchors(key, anchors, objects, config=config)
        return rpn_losses(
            logits[chosen],
            deltas[chosen],
            anchors[chosen],
            targets=targets,
            foreground=foreground,
            valid=valid,
            beta=config.smooth_l1_beta,
        )

    flat = (jnp.concatenate(one, axis=1) for one in (proposed.logits, proposed.deltas))
    cls, box = jax.vmap(one_image)(keys, *flat, _objects(batch))
    count = config.rpn_batch * len(keys)
    return {"rpn_cls": jnp.sum(cls) / count, "rpn_box": jnp.sum(box) / count}


def _score_rois(
    network, params: dict, proposed: Proposed, *, keys, batch, config: LossConfig
) -> RoiLosses:
    """Samples RoIs from the proposals of each image, classifies them, and says what it costs."""

    def sample(key, logits, deltas, size, objects):
        proposals, _, usable = select_proposals(
            logits,
            deltas,
            proposed.anchors,
            image_size=size,
            pre_nms=config.pre_nms,
            post_nms=config.post_nms,
        )
        # The objects themselves are candidates.
        candidates = jnp.concatenate([proposals, objects.boxes])
        usable = jnp.concatenate([usable, objects.valid])
        own = {"usable": usable, "classes": network.classes, "config": config}
        return sample_rois(jax.random.fold_in(key, 1), candidates, objects, **own)

    predicted = proposed.logits, proposed.deltas
    rois, targets, labels, valid = jax.vmap(sample)(
        keys, *predicted, batch["size"], _objects(batch)
    )
    scored = network.apply({"params": params}, proposed.levels, rois, method="classify")
    losses = functools.partial(roi_losses, beta=config.smooth_l1_beta)
    cls, reg = jax.vmap(losses)(*scored, labels, boxes=rois, targets=targets)
    return RoiLosses(
        cls, reg, labels < network.classes, valid=valid, labels=labels, targets=targets
    )


def rpn_losses(
    logits: jax.Array,
    deltas: jax.Array,
    anchors: jax.Array,
    *,
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
    *,
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


def roi_objective(
    rois: RoiLosses,
    *,
    step: jax.Array,
    drop: DropConfig | None,
    axis_name: str | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Equation 2 over all RoIs `[R]` of the batch: ({"cls", "box"} terms, metrics).

    The metrics are shares of RoIs over all devices (an `axis_name`), not means of the devices' own.
    """
    options = drop or DropConfig()
    active = jnp.asarray(drop is not None) & (step >= options.start)
    sums = dropped_sums(rois, active=active, drop=options)
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


def dropped_sums(rois: RoiLosses, *, active: jax.Array, drop: DropConfig) -> dict[str, jax.Array]:
    """Numerators of equation 2 over RoIs `[R]`, and the counts for its denominators and the log.

    active: bool scalar, False before the start step, when nothing is dropped. Returns float32
    scalars: `cls`, `reg` (sums of d * l), `n_valid`, `n_kept`, `foreground`, `background` (counts
    of valid RoIs), `dropped_foreground`, `dropped_background`.
    """
    keep = roi_drop(
        *rois[:4],
        tau_cls=drop.tau_cls,
        tau_reg=drop.tau_reg,
        rule=drop.rule,
        drop_background=drop.background,
    )
    valid = rois.valid
    keep = jnp.where(active, keep, valid)
    d = keep.astype(rois.cls.dtype)  # a product, so that a NaN loss is not hidden
    positive, negative = rois.foreground & valid, ~rois.foreground & valid
    return {
        "cls": jnp.sum(jnp.where(valid, rois.cls, 0) * d),
        "reg": jnp.sum(jnp.where(positive, rois.reg, 0) * d),
        "n_valid": _count(valid),
        "n_kept": _count(keep),
        "foreground": _count(positive),
        "background": _count(negative),
        "dropped_foreground": _count(positive & ~keep),
        "dropped_background": _count(negative & ~keep),
    }


def _count(mask: jax.Array) -> jax.Array:
    return jnp.sum(mask, dtype=jnp.float32)
