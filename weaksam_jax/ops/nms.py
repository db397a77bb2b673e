"""Greedy non-maximum suppression with static shapes: no host synchronisation, `vmap`-able."""

import jax
import jax.numpy as jnp

from weaksam_jax.boxes import iou

BLOCK = 128  # boxes that are judged at a time


def nms(
    boxes: jax.Array, scores: jax.Array, valid: jax.Array, iou_threshold: float, max_output: int
) -> tuple[jax.Array, jax.Array]:
    """Greedy NMS: the best box first, then every box whose IoU with all kept ones is <= threshold.

    boxes: `[N, 4]`; scores: `[N]`; valid: bool `[N]`. Returns (indices int32 `[max_output]` by
    falling score, 0 where unused; keep_valid bool `[max_output]`). Equal scores: lower index first.
    Equal to torchvision's `nms` cut to `max_output`, except for its arbitrary order of ties.

    For few outputs of many boxes (`best_survivors`); `dense_nms` gives the same and is faster for
    many of few.
    """
    boxes, valid, order = _sorted(boxes, scores, valid)
    places, kept = best_survivors(boxes, valid, iou_threshold, max_output=max_output)
    return jnp.where(kept, order[places], 0), kept


def dense_nms(
    boxes: jax.Array, scores: jax.Array, valid: jax.Array, iou_threshold: float, max_output: int
) -> tuple[jax.Array, jax.Array]:
    """`nms` (arguments and results too) from the matrix of all IoUs `[N, N]`."""
    boxes, valid, order = _sorted(boxes, scores, valid)
    places, kept = best_survivors(
        boxes, valid, iou_threshold, max_output=max_output, block=max(len(boxes), 1)
    )
    return jnp.where(kept, order[places], 0), kept


def _sorted(boxes, scores, valid):
    """Boxes and validity by falling score, and the index of each."""
    scores = jnp.where(valid, scores, -jnp.inf)
    order = jnp.argsort(scores, descending=True, stable=True).astype(jnp.int32)
    return boxes[order], valid[order], order


def best_survivors(
    boxes: jax.Array,
    valid: jax.Array,
    iou_threshold: float,
    *,
    max_output: int,
    block: int = BLOCK,
) -> tuple[jax.Array, jax.Array]:
    """The first `max_output` boxes that greedy NMS keeps of boxes `[N, 4]` by falling score.

    valid: bool `[N]`, which of them count. Returns (places int32 `[max_output]`, rising, 0 where
    unused; bool `[max_output]`). Boxes are judged a block at a time, against those kept before and
    among themselves (`_survivors`), until enough are found: mostly in one or two blocks.
    """
    count = boxes.shape[0]
    end = jnp.max(jnp.where(valid, jnp.arange(1, count + 1), 0), initial=0)
    block = max(min(block, count), 1)
    boxes = jnp.pad(boxes, ((0, -count % block), (0, 0)))
    valid = jnp.pad(valid, (0, -count % block))

    def judge(carry):
        start, found, places = carry
        own = jax.lax.dynamic_slice_in_dim(boxes, start, block)
        usable = jax.lax.dynamic_slice_in_dim(valid, start, block)
        kept = jnp.arange(max_output) < found
        blocked = (iou(own, boxes[places]) > iou_threshold) & kept
        keep = _survivors(own, usable & ~jnp.any(blocked, axis=1), iou_threshold)
        place = jnp.where(keep, found + jnp.cumsum(keep) - 1, max_output)
        index = start + jnp.arange(block, dtype=jnp.int32)
        places = places.at[place].set(index, mode="drop")
        return start + block, found + jnp.sum(keep, dtype=jnp.int32), places

    start = jnp.int32(0), jnp.int32(0), jnp.zeros(max_output, jnp.int32)
    if not count:
        return start[2], jnp.zeros(max_output, bool)
    unfinished = lambda carry: (carry[0] < end) & (carry[1] < max_output)  # noqa: E731
    _, found, places = jax.lax.while_loop(unfinished, judge, start)
    return places, jnp.arange(max_output) < found


def _survivors(boxes: jax.Array, valid: jax.Array, iou_threshold: float) -> jax.Array:
    """Greedy NMS of boxes `[N, 4]` by falling score in few rounds: bool `[N]`, those kept.

    Each round keeps what no box kept in the round before, and of higher score, overlaps; the first
    k boxes are right after k rounds at the latest, so the only set that a round leaves as it is is
    that of the greedy loop. Rounds are as many as the longest chain of boxes that suppress one
    another: about ten for the proposals of an RPN.
    """
    count = boxes.shape[0]
    before = jnp.arange(count)[None, :] < jnp.arange(count)[:, None]
    overlaps = (iou(boxes, boxes) > iou_threshold) & before

    def again(carry):
        keep, _ = carry
        changed = valid & ~jnp.any(overlaps & keep[None, :], axis=1)
        return changed, jnp.any(changed != keep)

    return jax.lax.while_loop(lambda carry: carry[1], again, (valid, jnp.any(valid)))[0]


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
    `max_output` survivors (`best_survivors`).
    """
    count, classes = scores.shape
    if boxes.ndim == 2:
        boxes = jnp.broadcast_to(boxes[:, None], (count, classes, 4))
    top = count if pre_nms_top_k is None else min(pre_nms_top_k, count)
    usable = valid[:, None] & (scores > score_threshold)
    ranked, order = jax.lax.top_k(jnp.where(usable, scores, -jnp.inf).T, top)
    candidates = jnp.take_along_axis(jnp.swapaxes(boxes, 0, 1), order[..., None], axis=1)

    def one_class(boxes, scores):
        picked, kept = best_survivors(
            boxes, scores > -jnp.inf, iou_threshold, max_output=min(top, max_output)
        )
        return boxes[picked], jnp.where(kept, scores[picked], -jnp.inf)

    found_boxes, found = jax.vmap(one_class)(candidates, ranked)
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
