"""Multiple-instance losses: WSDDN, and OICR / MIST refinement with box regression.

All functions take one image with N padded proposals and a mask `valid`; `jax.vmap` them over a
batch. Everything is float32. Overlaps follow the project's box convention (no "+1"), see
`weaksam_jax.boxes`; the released MIST adds 1 to widths. Class 0 of every score vector with C + 1
entries is the background.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from weaksam_jax.boxes import encode, iou

# Weights of the three refinement branches, classification and regression alike (MIST's release).
BRANCH_WEIGHTS = (3.0, 1.0, 1.0)
# float32(1 - 1e-8) is 1 and log(0) would follow, so probabilities stay 1e-6 away from 0 and 1.
_EPSILON = 1e-6


class MilOutputs(NamedTuple):
    """What the MIL head gives for one image.

    cls, det: WSDDN's two streams, `[N, C + 1]`. refine: logits `[K, N, C + 1]` of the K refinement
    branches. deltas: `[K, N, C + 1, 4]`, encoded boxes (see `weaksam_jax.boxes.encode`).
    """

    cls: jax.Array
    det: jax.Array
    refine: jax.Array
    deltas: jax.Array


class MilTargets(NamedTuple):
    """Pseudo labels of one image's proposals.

    labels: int32 `[N]`, 0 background, c + 1 for class c. weights: float32 `[N]`, the score of the
    pseudo box a proposal belongs to. targets: `[N, 4]`, that pseudo box (the proposal itself where
    there is none).
    """

    labels: jax.Array
    weights: jax.Array
    targets: jax.Array


def wsddn_scores(cls: jax.Array, det: jax.Array, valid: jax.Array) -> jax.Array:
    """Softmax over classes of `cls` times softmax over proposals of `det` (WSDDN, eq. 1-2).

    cls, det: `[N, K]`; valid: bool `[N]`. Returns `[N, K]`; padded rows are 0 and take no part.
    """
    mask = valid[:, None]
    det = jnp.where(mask, det, -1e9)
    return jnp.where(mask, jax.nn.softmax(cls, axis=1) * jax.nn.softmax(det, axis=0), 0.0)


def image_loss(scores: jax.Array, image_labels: jax.Array, valid: jax.Array) -> jax.Array:
    """Binary cross entropy of the image scores, the mean over K classes (MIST's release).

    scores: `[N, K]` of `wsddn_scores`; image_labels: bool `[K]`. An image without proposals has
    loss 0; one without tags is a negative for every class.
    """
    p = jnp.clip(scores.sum(0), _EPSILON, 1 - _EPSILON)
    loss = -jnp.where(image_labels, jnp.log(p), jnp.log1p(-p)).mean()
    return jnp.where(valid.any(), loss, 0.0)


def mine_mist(
    boxes: jax.Array,
    valid: jax.Array,
    scores: jax.Array,
    image_labels: jax.Array,
    top_fraction: float = 0.15,
    max_overlap: float = 0.2,
    foreground_iou: float = 0.5,
) -> MilTargets:
    """Multiple-instance self-training: several pseudo boxes a class (MIST, Algorithm 1, with
    the stricter rule of its released code).

    boxes: `[N, 4]`; valid: bool `[N]`; scores: `[N, C]`, the teacher's; image_labels: bool `[C]`.
    Of the n valid proposals the best K = floor(top_fraction n) of each tagged class compete (K = 1
    when n < 10); one is kept when its IoU with *every* better ranked one, kept or not, is below
    `max_overlap` (the paper's text compares with kept ones alone). Each proposal takes the pseudo
    box of highest IoU, ties going to the smaller class and then the better rank: the box's class if
    IoU >= foreground_iou, else background, and in both cases its score as weight. Equal scores rank
    the lower index first. No gradient flows.
    """
    boxes, valid, scores, image_labels = map(jnp.asarray, (boxes, valid, scores, image_labels))
    count = boxes.shape[0]
    table = _competitors(count, top_fraction)
    most = int(table.max())
    teacher = jnp.where(valid[:, None], jax.lax.stop_gradient(scores), -jnp.inf)
    best, order = jax.lax.top_k(teacher.T, most)
    candidates = boxes[order]
    better = jnp.tril(jnp.ones((most, most), bool), -1)
    overlap = jnp.max(jnp.where(better, iou(candidates, candidates), -1.0), axis=-1)
    ranked = jnp.arange(most) < jnp.asarray(table)[valid.sum()]
    kept = ranked & (best > -jnp.inf) & (overlap < max_overlap) & image_labels[:, None]
    classes = jnp.broadcast_to(jnp.arange(scores.shape[1])[:, None], kept.shape)
    pseudo = [x.reshape(-1, *x.shape[2:]) for x in (candidates, best, classes, kept)]
    return _assign(boxes, valid, *pseudo, foreground_iou, strict=False)


def _competitors(count: int, fraction: float) -> np.ndarray:
    """K for n = 0..count. A table, because float32 `floor(fraction * n)` can be off by one."""
    n = np.arange(count + 1)
    k = np.floor(fraction * n + 1e-9).astype(np.int32)
    return np.minimum(np.where(n < 10, 1, np.maximum(k, 1)), max(count, 1))


def mine_oicr(
    boxes: jax.Array,
    valid: jax.Array,
    scores: jax.Array,
    image_labels: jax.Array,
    foreground_iou: float = 0.5,
) -> MilTargets:
    """Online instance classifier refinement: the best proposal of each class (OICR, Algorithm 1).

    Shapes as in `mine_mist`. Classes are visited in ascending order; a winner's scores count as 0
    for the later classes. A proposal belongs to the winner of highest IoU (ties: smaller class) and
    takes its class if IoU > foreground_iou, else background; weight: the winner's score.
    """
    boxes, valid, scores, image_labels = map(jnp.asarray, (boxes, valid, scores, image_labels))
    teacher = jax.lax.stop_gradient(scores)

    def winner(free, column):
        class_scores, tagged = column
        open_scores = jnp.where(free, class_scores, 0.0)
        best = jnp.argmax(jnp.where(valid, open_scores, -jnp.inf))
        free = free & ~((jnp.arange(free.size) == best) & tagged)
        return free, (best, open_scores[best])

    free = jnp.ones_like(valid)
    _, (order, best) = jax.lax.scan(winner, free, (teacher.T, image_labels))
    classes = jnp.arange(scores.shape[1])
    kept = image_labels & valid.any()
    return _assign(boxes, valid, boxes[order], best, classes, kept, foreground_iou, strict=True)


def _assign(boxes, valid, pseudo, scores, classes, kept, foreground_iou, strict) -> MilTargets:
    """Gives every proposal its pseudo box (`[M, 4]`) of highest IoU, the first of equals."""
    overlap = jnp.where(kept[None, :], iou(boxes, pseudo), -1.0)
    index = jnp.argmax(overlap, axis=1)
    best = jnp.max(overlap, axis=1)
    assigned = valid & kept.any()
    foreground = best > foreground_iou if strict else best >= foreground_iou
    return MilTargets(
        jnp.where(assigned & foreground, classes[index] + 1, 0).astype(jnp.int32),
        jnp.where(assigned, scores[index], 0.0),
        jnp.where(assigned[:, None], pseudo[index], boxes),
    )


def classification_loss(logits: jax.Array, target: MilTargets, valid: jax.Array) -> jax.Array:
    """Sum of weight * cross entropy over the proposals, divided by their number n (eq. 3 of OICR).

    Never divided by the sum of weights: weights are small at the start on purpose.
    """
    log_p = jax.nn.log_softmax(logits)
    entropy = -jnp.take_along_axis(log_p, target.labels[:, None], axis=1)[:, 0]
    return jnp.where(valid, target.weights * entropy, 0.0).sum() / jnp.maximum(valid.sum(), 1)


def regression_loss(
    deltas: jax.Array, boxes: jax.Array, target: MilTargets, valid: jax.Array
) -> jax.Array:
    """Sum over foreground of weight * smooth L1 (beta 1) of the label's deltas, divided by n.

    deltas: `[N, C + 1, 4]`; boxes: `[N, 4]`, the proposals.
    """
    chosen = jnp.take_along_axis(deltas, target.labels[:, None, None], axis=1)[:, 0]
    error = jnp.abs(chosen - encode(target.targets, boxes))
    smooth = jnp.where(error < 1, 0.5 * error**2, error - 0.5).sum(-1)
    weight = jnp.where(valid & (target.labels > 0), target.weights, 0.0)
    return (weight * smooth).sum() / jnp.maximum(valid.sum(), 1)


def mil_loss(
    outputs: MilOutputs,
    boxes: jax.Array,
    valid: jax.Array,
    image_labels: jax.Array,
    method: str = "mist",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The whole loss of one image: WSDDN, and three refinement branches each taught by the one
    before it (branch 1 by WSDDN's scores).

    image_labels: bool `[C]` without background. method: "mist" (Algorithm 1 of MIST with box
    regression) or "oicr" (2017 rule, no regression). Returns (loss, its terms).
    """
    teacher = wsddn_scores(outputs.cls, outputs.det, valid)
    with_background = jnp.concatenate([jnp.zeros(1, bool), image_labels])
    terms = {
        "image": image_loss(teacher, with_background, valid),
        "refine": jnp.float32(0),
        "regress": jnp.float32(0),
    }
    mine = {"mist": mine_mist, "oicr": mine_oicr}[method]
    for weight, logits, deltas in zip(BRANCH_WEIGHTS, outputs.refine, outputs.deltas, strict=True):
        target = mine(boxes, valid, teacher[:, 1:], image_labels)
        terms["refine"] += weight * classification_loss(logits, target, valid)
        if method == "mist":
            terms["regress"] += weight * regression_loss(deltas, boxes, target, valid)
        teacher = jax.nn.softmax(logits)
    return sum(terms.values()), terms
