"""Proposals of a region proposal network (Faster R-CNN §3.1) from what its head predicts."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from weaksam_jax.boxes import RPN_WEIGHTS, decode
from weaksam_jax.ops.nms import best_survivors
from weaksam_jax.ops.ranking import top_k

BLOCK = 512  # boxes of a level that are judged at a time: most of 1000 are to be kept


def select_proposals(
    logits: Sequence[jax.Array],
    deltas: Sequence[jax.Array],
    anchors: Sequence[jax.Array],
    image_size: jax.Array,
    *,
    pre_nms: int,
    post_nms: int,
    iou_threshold: float = 0.7,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Proposals of one image: (boxes `[post_nms, 4]`, logits `[post_nms]`, valid `[post_nms]`).

    logits `[N_l]`, deltas and anchors `[N_l, 4]` of each level; image_size `[2]` = (height, width)
    of the image within its padding. A level: best `pre_nms` anchors, decoded, clipped to the image,
    empty ones dropped, NMS; then the best `post_nms` over all levels. No gradient flows through.
    """
    levels = zip(logits, deltas, anchors, strict=True)
    ranked = [_best_anchors(*one, image_size=image_size, count=pre_nms) for one in levels]
    most = max(len(scores) for _, scores, _ in ranked)
    boxes, scores, valid = (
        jnp.stack([_filled(one, most) for one in column]) for column in zip(*ranked, strict=True)
    )
    keep = functools.partial(
        best_survivors,
        iou_threshold=iou_threshold,
        max_output=min(most, post_nms),
        block=BLOCK,
    )
    places, kept = jax.vmap(keep)(boxes, valid)
    boxes = jnp.take_along_axis(boxes, places[..., None], axis=1).reshape(-1, 4)
    scores = jnp.where(kept, jnp.take_along_axis(scores, places, axis=1), -jnp.inf).reshape(-1)
    padding = max(post_nms - scores.shape[0], 0)
    best, order = jax.lax.top_k(jnp.pad(scores, (0, padding), constant_values=-jnp.inf), post_nms)
    valid = best > -jnp.inf
    boxes = jnp.where(valid[:, None], boxes[jnp.where(valid, order, 0)], 0)
    return jax.lax.stop_gradient((boxes, jnp.where(valid, best, 0), valid))


def _filled(x: jax.Array, count: int) -> jax.Array:
    """`[k, ...]` as `[count, ...]`, zeros at the end."""
    return jnp.pad(x, [(0, count - len(x))] + [(0, 0)] * (x.ndim - 1))


def _best_anchors(logits, deltas, anchors, image_size, count):
    """Boxes `[k, 4]` of a level's best k = min(count, N_l) anchors, decoded and clipped, their
    logits `[k]`, falling, and which are not empty."""
    scores, order = top_k(jax.lax.stop_gradient(logits), min(count, logits.shape[0]))
    boxes = decode(jax.lax.stop_gradient(deltas)[order], jnp.asarray(anchors)[order], RPN_WEIGHTS)
    limit = jnp.stack([image_size[1], image_size[0], image_size[1], image_size[0]])
    boxes = jnp.clip(boxes, 0, limit)
    return boxes, scores, jnp.all(boxes[:, 2:] > boxes[:, :2], axis=1)
