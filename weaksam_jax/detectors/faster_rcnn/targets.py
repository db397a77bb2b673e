"""Which anchors and RoIs Faster R-CNN is trained on, and what each answers for."""

import jax
import jax.numpy as jnp

from weaksam_jax.detectors.faster_rcnn.config import LossConfig
from weaksam_jax.ops.matching import FOREGROUND, match_by_iou
from weaksam_jax.ops.sampling import sample_balanced


def sample_anchors(
    key: jax.Array,
    anchors: jax.Array,
    boxes: jax.Array,
    valid: jax.Array,
    *,
    config: LossConfig,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Training anchors of one image out of anchors `[N, 4]`; boxes `[G, 4]`, valid `[G]`: objects.

    Returns (index int32 `[S]`, the box each one answers for `[S, 4]`, foreground bool `[S]`, valid
    bool `[S]`).
    """
    label, index = match_by_iou(
        anchors, boxes, valid, config.rpn_iou[1], config.rpn_iou[0], best_per_target=True
    )
    chosen, usable = sample_balanced(label, key, config.rpn_batch, config.rpn_foreground)
    return chosen, boxes[index[chosen]], label[chosen] == FOREGROUND, usable


def sample_rois(
    key: jax.Array,
    candidates: jax.Array,
    usable: jax.Array,
    boxes: jax.Array,
    valid: jax.Array,
    labels: jax.Array,
    *,
    classes: int,
    config: LossConfig,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Training RoIs of one image out of candidates `[N, 4]` (`usable` bool `[N]`).

    boxes `[G, 4]`, valid `[G]`, labels `[G]`: its objects. Returns (RoIs `[R, 4]`, the box each one
    answers for `[R, 4]`, label int32 `[R]` with `classes` = background, valid bool `[R]`).
    """
    matched, index = match_by_iou(
        candidates, boxes, valid, config.roi_iou, config.roi_iou, top_k=config.roi_top_k
    )
    matched = jnp.where(usable, matched, -1)
    chosen, kept = sample_balanced(matched, key, config.roi_batch, config.roi_foreground)
    target = index[chosen]
    label = jnp.where(matched[chosen] == FOREGROUND, labels[target], classes)
    rois = jax.lax.stop_gradient(candidates[chosen])
    return rois, boxes[target], label.astype(jnp.int32), kept
