"""Pseudo labels of proposals from image-level tags: the mining rules of MIST and OICR.

All functions take one image with N padded proposals and a mask `valid`; `jax.vmap` them over a
batch. No gradient flows. Every pseudo box is one of the proposals, so memory is O(N²) however many
classes there are. Overlaps follow the project's box convention (`weaksam_jax.boxes`); the official
codes' inclusive corners with "+1" are the same boxes with 1 added to x2 and y2.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from weaksam_jax.boxes import iou

# "paper": Tang et al. 2017. "official": what WeakSAM's code does (see `mine_oicr`).
OicrRule = Literal["paper", "official"]
# The official code's pseudo boxes: share of a class's best score they need, and IoU of their NMS.
NEAR_BEST, NMS_IOU = 0.9, 0.5


class MilTargets(NamedTuple):
    """Pseudo labels of one image's proposals.

    labels: int32 `[N]`, 0 background, c + 1 for class c. weights: float32 `[N]`, the score of the
    pseudo box a proposal belongs to. targets: `[N, 4]`, that pseudo box (the proposal itself where
    there is none).
    """

    labels: jax.Array
    weights: jax.Array
    targets: jax.Array


class _Pseudo(NamedTuple):
    """Pseudo boxes `[M, 4]`, their scores `[M]` and classes `[M]`; those not kept do not count.

    A proposal with several boxes of equal IoU belongs to the first of them.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    kept: jax.Array


def mine_mist(
    boxes: jax.Array,
    valid: jax.Array,
    scores: jax.Array,
    image_labels: jax.Array,
    *,
    top_fraction: float = 0.15,
    max_overlap: float = 0.2,
    foreground_iou: float = 0.5,
    ignore_below: float = 0.0,
) -> MilTargets:
    """Multiple-instance self-training: several pseudo boxes per class (MIST, Algorithm 1, with
    the stricter rule of its official code).

    boxes: `[N, 4]`; valid: bool `[N]`; scores: `[N, C]`, the teacher's; image_labels: bool `[C]`.
    Of the n valid proposals the best K = floor(top_fraction n) of each tagged class compete (K = 1
    when n < 10); one is kept when its IoU with *every* better ranked one, kept or not, is below
    `max_overlap` (the paper's text compares with kept ones alone). Each proposal takes the pseudo
    box of highest IoU, ties going to the smaller class and then the better rank: the box's class if
    IoU >= foreground_iou, else background, and in both cases its score as weight; weight 0 if IoU <
    ignore_below (see `mine_oicr`). Equal scores rank the lower index first.
    """
    boxes, valid, scores, image_labels = map(jnp.asarray, (boxes, valid, scores, image_labels))
    pseudo = _mist_boxes(
        boxes,
        valid,
        scores,
        image_labels=image_labels,
        top_fraction=top_fraction,
        max_overlap=max_overlap,
    )
    overlap, index = _closest(boxes, pseudo)
    return _targets(
        boxes,
        valid,
        pseudo,
        index=index,
        foreground=overlap >= foreground_iou,
        counts=overlap >= ignore_below,
    )


def mine_oicr(
    boxes: jax.Array,
    valid: jax.Array,
    scores: jax.Array,
    image_labels: jax.Array,
    *,
    foreground_iou: float = 0.5,
    rule: OicrRule = "paper",
    ignore_below: float = 0.0,
) -> MilTargets:
    """Online instance classifier refinement (OICR, Algorithm 1, or WeakSAM's official code).

    Shapes as in `mine_mist`. "paper": the best proposal of each tagged class is its pseudo box.
    Classes are visited in ascending order and a winner's scores count as 0 for the later ones. A
    proposal belongs to the pseudo box of highest IoU (ties: smaller class) and takes its class if
    IoU > foreground_iou, else background. "official" (of WSOD2, 0.9-max): all proposals with at
    least 0.9 times the best score of a tagged class, thinned by one NMS over all classes at IoU
    0.5; foreground from IoU >= foreground_iou; ties: higher score, then lower index.

    The weight is the pseudo box's score, for background too. ignore_below: proposals whose highest
    IoU is smaller have weight 0 (PCL's ignore band is 0.1; 0: none is ignored).
    """
    boxes, valid, scores, image_labels = map(jnp.asarray, (boxes, valid, scores, image_labels))
    find = {"paper": _oicr_boxes, "official": _official_boxes}[rule]
    pseudo = find(boxes, valid, scores, image_labels=image_labels)
    overlap, index = _closest(boxes, pseudo)
    foreground = overlap > foreground_iou if rule == "paper" else overlap >= foreground_iou
    return _targets(
        boxes, valid, pseudo, index=index, foreground=foreground, counts=overlap >= ignore_below
    )


def _mist_boxes(boxes, valid, scores, image_labels, top_fraction, max_overlap) -> _Pseudo:
    """Kept boxes by rising (class, rank); a box kept for several classes counts for the first.

    It would never be assigned for the later ones: its IoU with any proposal is the same.
    """
    count, classes = scores.shape
    table = _competitors(count, top_fraction)
    most = int(table.max())
    teacher = jnp.where(valid[:, None], jax.lax.stop_gradient(scores), -jnp.inf)
    best, order = jax.lax.top_k(teacher.T, most)
    candidates = boxes[order]
    better = jnp.tril(jnp.ones((most, most), bool), -1)
    overlap = jnp.max(jnp.where(better, iou(candidates, candidates), -1.0), axis=-1)
    ranked = jnp.arange(most) < jnp.asarray(table)[valid.sum()]
    kept = ranked & (best > -jnp.inf) & (overlap < max_overlap) & image_labels[:, None]
    never = classes * most
    place = jnp.where(kept, jnp.arange(never).reshape(classes, most), never)
    place = jnp.full(count, never).at[order].min(place)
    by_place = jnp.argsort(place)
    place = place[by_place]
    own = best.reshape(-1)[jnp.minimum(place, never - 1)]
    return _Pseudo(boxes[by_place], own, place // most, kept=place < never)


def _competitors(count: int, fraction: float) -> np.ndarray:
    """K for n = 0..count. A table, because float32 `floor(fraction * n)` can be off by one."""
    n = np.arange(count + 1)
    k = np.floor(fraction * n + 1e-9).astype(np.int32)
    return np.minimum(np.where(n < 10, 1, np.maximum(k, 1)), max(count, 1))


def _oicr_boxes(boxes, valid, scores, image_labels) -> _Pseudo:
    """The best free box of each class."""
    teacher = jax.lax.stop_gradient(scores)

    def winner(free, column):
        class_scores, tagged = column
        open_scores = jnp.where(free, class_scores, 0.0)
        best = jnp.argmax(jnp.where(valid, open_scores, -jnp.inf))
        free = free & ~((jnp.arange(free.size) == best) & tagged)
        return free, (best, open_scores[best])

    free = jnp.ones_like(valid)
    _, (order, best) = jax.lax.scan(winner, free, (teacher.T, image_labels))
    kept = image_labels & valid.any()
    return _Pseudo(boxes[order], best, jnp.arange(scores.shape[1]), kept=kept)


def _official_boxes(boxes, valid, scores, image_labels) -> _Pseudo:
    """Boxes near the best of a class, after one NMS over all classes, by falling score.

    A box near the best of several classes competes for the one of its highest score: whatever
    becomes of that entry, the others would be suppressed with it or by it.
    """
    teacher = jax.lax.stop_gradient(scores)
    usable = valid[:, None] & image_labels
    highest = jnp.max(jnp.where(usable, teacher, -jnp.inf), axis=0, keepdims=True)
    near = jnp.where(usable & (teacher >= NEAR_BEST * highest), teacher, -jnp.inf)
    own = near.max(1)
    order = jnp.argsort(-own)
    candidates = boxes[order]
    kept = _suppress(candidates, own[order] > -jnp.inf)
    return _Pseudo(candidates, own[order], near.argmax(1)[order], kept=kept)


def _suppress(boxes: jax.Array, candidate: jax.Array) -> jax.Array:
    """Greedy NMS of boxes `[N, 4]` by falling score: bool `[N]`, those kept.

    A box is kept when no better *kept* one overlaps it. Each pass over all pairs settles at least
    the next box, in practice as many as do not depend on each other: a dozen passes instead of a
    step for each box kept, of which an untrained detector's even scores leave hundreds.
    """
    better = jnp.tril(jnp.ones((boxes.shape[0],) * 2, bool), -1)
    blocks = better & (iou(boxes, boxes) > NMS_IOU)

    def settle(state):
        kept, _ = state
        return candidate & ~(blocks & kept[None, :]).any(1), kept

    start = candidate, jnp.zeros_like(candidate)
    return jax.lax.while_loop(lambda state: (state[0] != state[1]).any(), settle, start)[0]


def _closest(boxes, pseudo: _Pseudo) -> tuple[jax.Array, jax.Array]:
    """(highest IoU `[N]`, index of the first pseudo box that has it)."""
    overlap = jnp.where(pseudo.kept[None, :], iou(boxes, pseudo.boxes), -1.0)
    return jnp.max(overlap, axis=1), jnp.argmax(overlap, axis=1)


def _targets(boxes, valid, pseudo: _Pseudo, index, foreground, counts) -> MilTargets:
    assigned = valid & pseudo.kept.any()
    return MilTargets(
        jnp.where(assigned & foreground, pseudo.classes[index] + 1, 0).astype(jnp.int32),
        jnp.where(assigned & counts, pseudo.scores[index], 0.0),
        jnp.where(assigned[:, None], pseudo.boxes[index], boxes),
    )
