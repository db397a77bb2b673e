"""Which anchors and RoIs Faster R-CNN is trained on, and what each answers for."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from weaksam_jax.detectors.faster_rcnn.config import LossConfig
from weaksam_jax.ops.matching import FOREGROUND, match_by_iou
from weaksam_jax.ops.sampling import sample_balanced


class Objects(NamedTuple):
    """The objects of an image: boxes `[G, 4]`, labels int `[G]`, valid bool `[G]`."""

    boxes: jax.Array
    labels: jax.Array
    valid: jax.Array


def sample_anchors(
    key: jax.Array, anchors: jax.Array, objects: Objects, *, config: LossConfig
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Training anchors of one image out of anchors `[N, 4]`.

    Returns (index int32 `[S]`, the box each one answers for `[S, 4]`, foreground bool `[S]`, valid
    bool `[S]`).
    """
    background, foreground = config.rpn_iou
    label, index = match_by_iou(
        anchors,
        objects.boxes,
        objects.valid,
        foreground_iou=foreground,
        background_iou=background,
        best_per_target=True,
    )
    chosen, usable = sample_balanced(
        label, key, config.rpn_batch, foreground_fraction=config.rpn_foreground
    )
    return chosen, objects.boxes[index[chosen]], label[chosen] == FOREGROUND, usable


def sample_rois(
    key: jax.Array,
    candidates: jax.Array,
    objects: Objects,
    *,
    usable: jax.Array,
    classes: int,
    config: LossConfig,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Training RoIs of one image out of candidates `[N, 4]`, those that are `usable` (bool `[N]`).

    Returns (RoIs `[R, 4]`, the box each one answers for `[R, 4]`, label int32 `[R]` with `classes`
    = background, valid bool `[R]`).
    """
    iou, boxes = config.roi_iou, objects.boxes
    matched, index = match_by_iou(
        candidates,
        boxes,
        objects.valid,
        foreground_iou=iou,
        background_iou=iou,
        top_k=config.roi_top_k,
    )
    matched = jnp.where(usable, matched, -1)
    chosen, kept = sample_balanced(
        matched, key, config.roi_batch, foreground_fraction=config.roi_foreground
    )
    target = index[chosen]
    label = jnp.where(matched[chosen] == FOREGROUND, objects.labels[target], classes)
    rois = jax.lax.stop_gradient(candidates[chosen])
    return rois, boxes[target], label.astype(jnp.int32), kept
