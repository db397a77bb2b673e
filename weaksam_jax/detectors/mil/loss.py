"""Multiple-instance losses: WSDDN, and OICR / MIST refinement with box regression.

All functions take one image with N padded proposals and a mask `valid`; `jax.vmap` them over a
batch. Everything is float32. Class 0 of every score vector with C + 1 entries is the background.
The two official code bases scale their losses differently (a mean or a sum over classes, branch
weights 3, 1, 1 or 1, 1, 1): do not mix their recipes.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from weaksam_jax.boxes import encode
from weaksam_jax.detectors.mil.mining import MilTargets, OicrRule, mine_mist, mine_oicr

__all__ = [
    "BRANCH_WEIGHTS",
    "MilOutputs",
    "MilTargets",
    "classification_loss",
    "image_loss",
    "mil_loss",
    "mine_mist",
    "mine_oicr",
    "regression_loss",
    "wsddn_scores",
]

Method = Literal["mist", "oicr", "wsddn"]
Reduction = Literal["mean", "sum"]
# Weights of the three refinement branches, classification and regression alike (MIST's official
# code).
BRANCH_WEIGHTS = (3.0, 1.0, 1.0)
# Bounds of an image score. MIST's upper one, 1 - 1e-8, is 1 in float32 and log(0) would follow.
LOWEST, HIGHEST = 1e-8, 1 - 1e-6
# Added to a probability within the logarithm by OICR's official code.
OFFICIAL_EPSILON = 1e-6


class MilOutputs(NamedTuple):
    """What the MIL head gives for one image.

    cls, det: WSDDN's two streams, `[N, K]` with K = C + 1, or K = C without a background column.
    refine: logits `[3, N, C + 1]` of the refinement branches. deltas: `[3, N, C + 1, 4]`, encoded
    boxes (see `weaksam_jax.boxes.encode`).
    """

    cls: jax.Array
    det: jax.Array
    refine: jax.Array
    deltas: jax.Array


def wsddn_scores(cls: jax.Array, det: jax.Array, valid: jax.Array) -> jax.Array:
    """Softmax over classes of `cls` times softmax over proposals of `det` (WSDDN, eq. 1-2).

    cls, det: `[N, K]`; valid: bool `[N]`. Returns `[N, K]`; padded rows are 0 and take no part.
    """
    mask = valid[:, None]
    share = jax.nn.softmax(det, axis=0, where=mask)
    return jnp.where(mask, jax.nn.softmax(cls, axis=1) * share, 0.0)


def image_loss(
    scores: jax.Array, image_labels: jax.Array, valid: jax.Array, reduction: Reduction = "mean"
) -> jax.Array:
    """Binary cross entropy of the image scores.

    scores: `[N, K]` of `wsddn_scores`; image_labels: bool `[K]`, False for the background.
    reduction: over the K classes, "mean" (MIST's code, with a background column) or "sum"
    (OICR's, without). An image without valid proposals has loss 0; one without tags is a negative
    for every class.
    """
    p = jnp.clip(scores.sum(0), LOWEST, HIGHEST)
    loss = -jnp.where(image_labels, jnp.log(p), jnp.log1p(-p))
    loss = {"mean": jnp.mean, "sum": jnp.sum}[reduction](loss)
    return jnp.where(valid.any(), loss, 0.0)


def classification_loss(
    logits: jax.Array, target: MilTargets, valid: jax.Array, epsilon: float = 0.0
) -> jax.Array:
    """Sum of weight * cross entropy over the proposals, divided by their number n (eq. 3 of OICR).

    logits: `[N, C + 1]`. Never divided by the sum of weights: weights are small at the start on
    purpose. epsilon: added to the probability within the logarithm (OICR's code: 1e-6), which
    bounds the loss and stills the gradient of hopeless proposals.
    """
    log_p = jnp.log(jax.nn.softmax(logits) + epsilon) if epsilon else jax.nn.log_softmax(logits)
    entropy = -jnp.take_along_axis(log_p, target.labels[:, None], axis=1)[:, 0]
    return _weighted(entropy, jnp.where(valid, target.weights, 0.0), valid)


def regression_loss(
    deltas: jax.Array, boxes: jax.Array, target: MilTargets, valid: jax.Array
) -> jax.Array:
    """Sum over foreground of weight * smooth L1 (beta 1) of the label's deltas, divided by n.

    deltas: `[N, C + 1, 4]`; boxes: `[N, 4]`, the proposals.
    """
    chosen = jnp.take_along_axis(deltas, target.labels[:, None, None], axis=1)[:, 0]
    error = jnp.abs(chosen - encode(target.targets, boxes))
    small = jnp.minimum(error, 1.0)  # no square of a huge error, whose gradient would be NaN
    smooth = (0.5 * small**2 + (error - small)).sum(-1)
    return _weighted(smooth, jnp.where(valid & (target.labels > 0), target.weights, 0.0), valid)


def _weighted(losses, weights, valid):
    """Weighted sum over the number of valid ones; a loss too large for float32 times 0 is 0."""
    return jnp.where(weights > 0, weights * losses, 0.0).sum() / jnp.maximum(valid.sum(), 1)


def mil_loss(
    outputs: MilOutputs,
    boxes: jax.Array,
    valid: jax.Array,
    image_labels: jax.Array,
    *,
    method: Method = "mist",
    oicr_rule: OicrRule = "paper",
    ignore_below: float = 0.0,
    reduction: Reduction = "mean",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The whole loss of one image: WSDDN, and three refinement branches each taught by the one
    before it (branch 1 by WSDDN's scores).

    boxes: `[N, 4]`; valid: bool `[N]`; image_labels: bool `[C]` without background. method: "mist"
    (Algorithm 1 of MIST with box regression), "oicr" (one rule of `mine_oicr`, no regression) or
    "wsddn" (the image loss alone). oicr_rule: "official" also has branch weights 1 and the loss's
    epsilon of 1e-6. ignore_below: see `mine_oicr`. reduction: of the image loss. Half-precision
    outputs are computed with in float32. Returns (loss, its terms).
    """
    outputs = MilOutputs(*(x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in outputs))
    classes = image_labels.shape[0]
    scores = wsddn_scores(outputs.cls, outputs.det, valid)
    columns = jnp.pad(image_labels, (scores.shape[1] - classes, 0))
    terms = {
        "image": image_loss(scores, columns, valid, reduction=reduction),
        "refine": jnp.float32(0),
        "regress": jnp.float32(0),
    }
    if method == "wsddn":
        return terms["image"], terms
    official = method == "oicr" and oicr_rule == "official"
    branch_weights = (1.0, 1.0, 1.0) if official else BRANCH_WEIGHTS
    teacher = scores[:, -classes:]
    for weight, logits, deltas in zip(branch_weights, outputs.refine, outputs.deltas, strict=True):
        if method == "mist":
            target = mine_mist(
                boxes, valid, teacher, image_labels=image_labels, ignore_below=ignore_below
            )
            terms["regress"] += weight * regression_loss(deltas, boxes, target, valid=valid)
        else:
            target = mine_oicr(
                boxes,
                valid,
                teacher,
                image_labels=image_labels,
                rule=oicr_rule,
                ignore_below=ignore_below,
            )
        epsilon = OFFICIAL_EPSILON if official else 0.0
        terms["refine"] += weight * classification_loss(logits, target, valid, epsilon=epsilon)
        teacher = jax.nn.softmax(logits)[:, 1:]
    return sum(terms.values()), terms
