"""Detections of a Faster R-CNN on one batch."""

import functools

import jax
import jax.numpy as jnp

from weaksam_jax.boxes import decode
from weaksam_jax.detectors.faster_rcnn.config import TestConfig
from weaksam_jax.detectors.faster_rcnn.model import FasterRcnnNetwork
from weaksam_jax.engine.predict import Detections
from weaksam_jax.ops.nms import multiclass_nms
from weaksam_jax.ops.proposals import select_proposals


def detect(
    network: FasterRcnnNetwork,
    params: dict,
    images: jax.Array,
    *,
    size: jax.Array,
    config: TestConfig,
) -> Detections:
    """Detections of normalised images `[B, H, W, 3]` whose (height, width) are `size` `[B, 2]`.

    Boxes in pixels of the input, clipped to the image; softmax scores above the threshold, boxes
    not empty after clipping, class-wise NMS, the best `max_detections` = D, best first.
    """
    variables = {"params": params}
    levels = network.apply(variables, images, method="pyramid")
    logits, deltas = network.apply(variables, levels, method="propose")
    anchors = network.anchors(levels)

    def propose(logits, deltas, size):
        return select_proposals(
            logits,
            deltas,
            anchors,
            image_size=size,
            pre_nms=config.pre_nms,
            post_nms=config.post_nms,
        )

    boxes, _, valid = jax.vmap(propose)(logits, deltas, size)
    class_logits, class_deltas = network.apply(variables, levels, boxes, method="classify")

    select = functools.partial(select_detections, config=config)
    return jax.vmap(select)(class_logits, class_deltas, boxes, valid=valid, size=size)


def select_detections(
    class_logits: jax.Array,
    deltas: jax.Array,
    boxes: jax.Array,
    *,
    valid: jax.Array,
    size: jax.Array,
    config: TestConfig,
) -> Detections:
    """Detections of one image from its classified proposals; as `detect`, without B.

    class_logits `[R, classes + 1]`, deltas `[R, classes, 4]`, boxes `[R, 4]`, valid bool `[R]`,
    size `[2]` = (height, width).
    """
    scores = jax.nn.softmax(class_logits.astype(jnp.float32))[:, :-1]
    limit = jnp.stack([size[1], size[0], size[1], size[0]])
    decoded = jnp.clip(decode(deltas, boxes[:, None]), 0, limit)
    empty = jnp.any(decoded[..., 2:] <= decoded[..., :2], axis=-1)  # moved out of the image
    scores = jnp.where(empty, -jnp.inf, scores)
    found = multiclass_nms(
        decoded,
        scores,
        valid,
        score_threshold=config.score_threshold,
        iou_threshold=config.nms,
        max_output=config.max_detections,
        pre_nms_top_k=boxes.shape[0],
    )
    return Detections(*found)
