"""Proposals of a region proposal network (Faster R-CNN §3.1) from what its head predicts."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from weaksam_jax.boxes import RPN_WEIGHTS, decode
from weaksam_jax.ops.nms import dense_nms


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
    kept_boxes, kept_logits = [], []
    how = {"pre_nms": pre_nms, "post_nms": post_nms, "iou_threshold": iou_threshold}
    for level in zip(logits, deltas, anchors, strict=True):
        boxes, scores = _level_proposals(*level, image_size=image_size, **how)
        kept_boxes.append(boxes)
        kept_logits.append(scores)
    boxes, scores = jnp.concatenate(kept_boxes), jnp.concatenate(kept_logits)
    padding = max(post_nms - scores.shape[0], 0)
    best, order = jax.lax.top_k(jnp.pad(scores, (0, padding), constant_values=-jnp.inf), post_nms)
    valid = best > -jnp.inf
    boxes = jnp.where(valid[:, None], boxes[jnp.where(valid, order, 0)], 0)
    return jax.lax.stop_gradient((boxes, jnp.where(valid, best, 0), valid))


def _level_proposals(logits, deltas, anchors, image_size, pre_nms, post_nms, iou_threshold):
    """Boxes `[k, 4]` and logits `[k]` (-inf: unused) of one level after NMS."""
    top = min(pre_nms, logits.shape[0])
    scores, order = jax.lax.top_k(jax.lax.stop_gradient(logits), top)
    boxes = decode(jax.lax.stop_gradient(deltas)[order], jnp.asarray(anchors)[order], RPN_WEIGHTS)
    limit = jnp.stack([image_size[1], image_size[0], image_size[1], image_size[0]])
    boxes = jnp.clip(boxes, 0, limit)
    valid = jnp.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    kept, kept_valid = dense_nms(
        boxes, scores, valid, iou_threshold=iou_threshold, max_output=min(top, post_nms)
    )
    return boxes[kept], jnp.where(kept_valid, scores[kept], -jnp.inf)
