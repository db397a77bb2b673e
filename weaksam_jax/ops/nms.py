"""Greedy non-maximum suppression with static shapes: no host synchronisation, `vmap`-able."""

import jax
import jax.numpy as jnp

from weaksam_jax.boxes import iou


def nms(
    boxes: jax.Array, scores: jax.Array, valid: jax.Array, iou_threshold: float, max_output: int
) -> tuple[jax.Array, jax.Array]:
    """Greedy NMS: the best box first, then every box whose IoU with all kept ones is <= threshold.

    boxes: `[N, 4]`; scores: `[N]`; valid: bool `[N]`. Returns (indices int32 `[max_output]` by
    falling score, 0 where unused; keep_valid bool `[max_output]`). Equal scores: lower index first.
    Equal to torchvision's `nms` cut to `max_output`, except for its arbitrary order of ties.

    A loop with a row of IoUs for each box that is kept: for few outputs of many boxes. `dense_nms`
    gives the same and is faster for many.
    """
    remaining = jnp.where(valid, scores, -jnp.inf)
    indices = jnp.zeros(max_output, jnp.int32)
    kept = jnp.zeros(max_output, bool)

    def unfinished(carry):
        step, remaining, _, _ = carry
        return (step < max_output) & jnp.any(remaining > -jnp.inf)

    def keep_best(carry):
        step, remaining, indices, kept = carry
        best = jnp.argmax(remaining).astype(jnp.int32)
        overlap = iou(boxes[best][None], boxes)[0]
        remaining = jnp.where(overlap > iou_threshold, -jnp.inf, remaining).at[best].set(-jnp.inf)
        return step + 1, remaining, indices.at[step].set(best), kept.at[step].set(True)

    carry = (0, remaining, indices, kept)
    _, _, indices, kept = jax.lax.while_loop(unfinished, keep_best, carry)
    return indices, kept


def dense_nms(
    boxes: jax.Array, scores: jax.Array, valid: jax.Array, iou_threshold: float, max_output: int
) -> tuple[jax.Array, jax.Array]:
    """`nms` from the matrix of all IoUs `[N, N]`, in few rounds instead of one step per box.

    Arguments and results as in `nms`. Each round keeps what no box kept in the round before, and of
    higher score, overlaps; the first k boxes are right after k rounds at the latest, so the only
    set that a round leaves as it is is that of the greedy loop. Rounds are as many as the longest
    chain of boxes that suppress one another: about ten for the proposals of an RPN.
    """
    count = scores.shape[0]
    order = jnp.argsort(jnp.where(valid, scores, -jnp.inf), descending=True, stable=True)
    boxes, valid = boxes[order], valid[order]
    before = jnp.arange(count)[None, :] < jnp.arange(count)[:, None]
    overlaps = (iou(boxes, boxes) > iou_threshold) & before

    def again(carry):
        keep, _ = carry
        changed = valid & ~jnp.any(overlaps & keep[None, :], axis=1)
        return changed, jnp.any(changed != keep)

    keep, _ = jax.lax.while_loop(lambda carry: carry[1], again, (valid, jnp.any(valid)))
    place = jnp.where(keep, jnp.cumsum(keep) - 1, max_output)
    indices = jnp.zeros(max_output, jnp.int32).at[place].set(order.astype(jnp.int32), mode="drop")
    return indices, jnp.arange(max_output) < jnp.sum(keep)


def multiclass_nms(
    boxes: jax.Array,
    scores: jax.Array,
    valid: jax.Array,
    *,
    score_threshold: float,
    iou_threshold: float,
    max_output: int,
    pre_nms_top_k: int | None = None,
    every_class: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """NMS within each class, then the best `max_output` detections over all classes.

    every_class: the best detection of each class is among them however low its score is (CorLoc
    and pseudo ground truth ask for the best box of a class that is known to be there).

    boxes: `[N, 4]` shared by the classes, or `[N, C, 4]`; scores: `[N, C]`, kept when strictly
    above `score_threshold`; valid: bool `[N]`; pre_nms_top_k: candidates per class, None: all.
    Returns (boxes `[max_output, 4]`, scores, class indices int32, valid) by falling score; equal
    scores: lower class, then lower index first. Unused rows are zero and invalid.

    A cut to candidates changes the result where many boxes of a class lie on few places: the cut
    ones would have survived. Without it the result is exact, for no class needs more than
    `max_output` survivors, and each costs one row of IoUs and not a matrix.
    """
    count, classes = scores.shape
    if boxes.ndim == 2:
        boxes = jnp.broadcast_to(boxes[:, None], (count, classes, 4))
    top = count if pre_nms_top_k is None else min(pre_nms_top_k, count)

    def one_class(class_boxes, class_scores):
        candidate = valid & (class_scores > score_threshold)
        class_scores = jnp.where(candidate, class_scores, -jnp.inf)
        if top < count:
            class_scores, order = jax.lax.top_k(class_scores, top)
            class_boxes = class_boxes[order]
        usable = class_scores > -jnp.inf
        picked, kept = nms(
            class_boxes,
            class_scores,
            usable,
            iou_threshold=iou_threshold,
            max_output=min(top, max_output),
        )
        return class_boxes[picked], jnp.where(kept, class_scores[picked], -jnp.inf)

    found_boxes, found = jax.vmap(one_class, in_axes=(1, 1))(boxes, scores)
    per_class = found.shape[1]
    padding = max(max_output - found.size, 0)
    flat = jnp.pad(found.reshape(-1), (0, padding), constant_values=-jnp.inf)
    if every_class:
        flat = _with_every_class(flat, per_class, max_output)
    best, order = jax.lax.top_k(flat, max_output)
    kept = best > -jnp.inf
    order = jnp.where(kept, order, 0)
    return (
        jnp.where(kept[:, None], found_boxes.reshape(-1, 4)[order], 0),
        jnp.where(kept, best, 0),
        jnp.where(kept, order // per_class, 0).astype(jnp.int32),
        kept,
    )


def _with_every_class(flat: jax.Array, per_class: int, max_output: int) -> jax.Array:
    """Scores `[C * per_class]` (plus padding) of which only what has a place still competes: the
    first of each class before all others."""
    first = (jnp.arange(flat.size) % per_class == 0) & (flat > -jnp.inf)
    _, taken = jax.lax.top_k(jnp.where(first, jnp.inf, flat), max_output)
    return jnp.full_like(flat, -jnp.inf).at[taken].set(flat[taken])
