"""Detections of a DINO on one batch."""

import functools

import jax
import jax.numpy as jnp

from weaksam_jax.detectors.dino.config import TestConfig
from weaksam_jax.detectors.dino.model import DinoNetwork
from weaksam_jax.engine.predict import Detections


def detect(
    network: DinoNetwork,
    params: dict,
    images: jax.Array,
    *,
    size: jax.Array,
    config: TestConfig,
) -> Detections:
    """Detections of normalised images `[B, H, W, 3]` whose (height, width) are `size` `[B, 2]`.

    Boxes in pixels of the input, clipped to the image: the best `max_detections` = D pairs of query
    and class of the last decoder layer, best first, without NMS.
    """
    found = network.apply({"params": params}, images, size)
    select = functools.partial(select_detections, config=config)
    return jax.vmap(select)(found.logits[-1], found.boxes[-1], size)


def select_detections(
    logits: jax.Array, boxes: jax.Array, size: jax.Array, *, config: TestConfig
) -> Detections:
    """Detections of one image: logits `[Q, C]`, boxes `[Q, 4]` (centre, sides) in shares of the
    image of (height, width) `size` `[2]`. Not valid: scores up to the threshold, and boxes that are
    empty after clipping."""
    queries, classes = logits.shape
    count = min(config.max_detections, queries * classes)
    scores, place = jax.lax.top_k(jax.nn.sigmoid(logits).reshape(-1), count)
    sides = jnp.tile(size[::-1], 2).astype(jnp.float32)
    found = jnp.clip(corners(boxes[place // classes]) * sides, 0, sides)
    valid = (scores > config.score_threshold) & jnp.all(found[:, 2:] > found[:, :2], axis=-1)
    rest = (0, config.max_detections - count)
    return Detections(
        jnp.pad(found, (rest, (0, 0))),
        jnp.pad(scores, rest),
        labels=jnp.pad((place % classes).astype(jnp.int32), rest),
        valid=jnp.pad(valid, rest),
    )


def corners(boxes: jax.Array) -> jax.Array:
    """(centre, sides) -> (upper left, lower right), `[..., 4]`."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], -1)
