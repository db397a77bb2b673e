"""Losses of a set of queries against a set of objects (DETR): matching costs and what each query
costs, unreduced, so that a drop mask can multiply them.

L layers, B images, Q queries, G objects (padded), C classes. Boxes of queries are (centre x, centre
y, width, height) as shares of the image; everything is computed in float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from weaksam_jax.boxes import from_cxcywh, paired_giou, to_cxcywh
from weaksam_jax.losses.focal import ALPHA, GAMMA, binary_cross_entropy, focal_cost, focal_loss


class Targets(NamedTuple):
    """Objects of a batch. boxes: float32 `[B, G, 4]`, (centre x, centre y, width, height) as shares
    of the image; labels: int32 `[B, G]`; valid: bool `[B, G]`; scale: float32 `[B, 4]`, (width,
    height, width, height) of the image in pixels."""

    boxes: jax.Array
    labels: jax.Array
    valid: jax.Array
    scale: jax.Array


class Slots(NamedTuple):
    """What each query shall say, `[..., B, Q]` each. index: int32, its object (0 where none);
    positive: bool, it has one; valid: bool, it takes part in the loss."""

    index: jax.Array
    positive: jax.Array
    valid: jax.Array


class QueryLosses(NamedTuple):
    """Losses of each query, float32 `[..., B, Q]`, 0 where they do not apply.

    cls: focal loss summed over the classes. ranking: the same unweighted, which is the binary cross
    entropy (appendix C); without gradient. l1, giou: of positive queries only; L1 summed over the
    four numbers, 1 - GIoU.
    """

    cls: jax.Array
    ranking: jax.Array
    l1: jax.Array
    giou: jax.Array


def targets_of(boxes: jax.Array, labels: jax.Array, valid: jax.Array, size: jax.Array) -> Targets:
    """From boxes `[B, G, 4]` (x1, y1, x2, y2) in pixels of images of size `[B, 2]` (height,
    width)."""
    scale = jnp.tile(size[:, ::-1], 2).astype(jnp.float32)
    shares = to_cxcywh(boxes.astype(jnp.float32)) / scale[:, None]
    return Targets(jnp.where(valid[..., None], shares, 0), labels, valid, scale=scale)


def matching_cost(
    logits: jax.Array,
    boxes: jax.Array,
    targets: Targets,
    *,
    cls: float = 2.0,
    l1: float = 5.0,
    giou: float = 2.0,
    alpha: float = ALPHA,
    gamma: float = GAMMA,
) -> jax.Array:
    """Costs float32 `[..., B, G, Q]` of giving each object to each query, weighted by cls
    (`focal_cost` of its class), l1 (summed over the four numbers) and giou (-GIoU, in pixels).

    logits: `[..., B, Q, C]`; boxes: `[..., B, Q, 4]`. No gradient.
    """
    logits, boxes = jax.lax.stop_gradient((logits, boxes.astype(jnp.float32)))
    by_class = jnp.swapaxes(focal_cost(logits, alpha, gamma), -1, -2)
    labels = jnp.clip(targets.labels, 0, logits.shape[-1] - 1)[..., None]
    labels = labels.reshape((1,) * (by_class.ndim - 3) + labels.shape)
    class_cost = jnp.take_along_axis(by_class, labels, axis=-2)
    query, object_ = boxes[..., None, :, :], targets.boxes[..., :, None, :]
    distance = sum(jnp.abs(query[..., k] - object_[..., k]) for k in range(4))
    scale = targets.scale[:, None, None]
    overlap = paired_giou(from_cxcywh(query) * scale, from_cxcywh(object_) * scale)
    return cls * class_cost + l1 * distance - giou * overlap


def query_losses(
    logits: jax.Array,
    boxes: jax.Array,
    slots: Slots,
    *,
    targets: Targets,
    alpha: float = ALPHA,
    gamma: float = GAMMA,
) -> QueryLosses:
    """What each query costs. logits: `[..., B, Q, C]`; boxes: `[..., B, Q, 4]`."""
    boxes = boxes.astype(jnp.float32)
    label, wanted = _of_slots(slots.index, targets)
    found = slots.positive & slots.valid
    true = found[..., None] & (label[..., None] == jnp.arange(logits.shape[-1]))
    scale = targets.scale[:, None]
    overlap = paired_giou(from_cxcywh(boxes) * scale, from_cxcywh(wanted) * scale)
    focal = focal_loss(logits, true, alpha, gamma=gamma)
    entropy = binary_cross_entropy(jax.lax.stop_gradient(logits), true)
    return QueryLosses(
        cls=jnp.where(slots.valid, jnp.sum(focal, axis=-1), 0),
        ranking=jnp.where(slots.valid, jnp.sum(entropy, axis=-1), 0),
        l1=jnp.where(found, jnp.sum(jnp.abs(boxes - wanted), axis=-1), 0),
        giou=jnp.where(found, 1 - overlap, 0),
    )


def _of_slots(index: jax.Array, targets: Targets) -> tuple[jax.Array, jax.Array]:
    """Labels `[..., B, Q]` and boxes `[..., B, Q, 4]` of the objects of slots."""

    def take(index, labels, boxes):
        return labels[index], boxes[index]

    of_batch = jax.vmap(take)
    for _ in range(index.ndim - 2):
        of_batch = jax.vmap(of_batch, in_axes=(0, None, None))
    return of_batch(index, targets.labels, targets.boxes)
