"""Contrastive denoising (DINO §3.3) in a static number of slots.

Of each object noisy copies are shown to the decoder: positives, whose box is moved by at most half
its sides and which shall find the object, and negatives, moved further, which shall say background.
A group holds each object once as either; groups do not see one another, and matching queries see
none of them.

The official code makes as many slots as the batch needs. Here there are always S, and those beyond
the need are padding that nobody sees. grouping "image": each image has groups for its own number of
objects. "batch" (the official code): all have those of the image with most objects, and an image
with fewer fills its groups with empty queries, which take part in attention and say background.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from weaksam_jax.detectors.dino.config import DenoisingConfig
from weaksam_jax.detectors.dino.outputs import DenoisingTargets
from weaksam_jax.detectors.dino.positions import inverse_sigmoid

EPSILON = 1e-3  # of the inverse sigmoid of noisy boxes


class Noise(NamedTuple):
    """Random numbers of each slot. change: uniform in [0, 1) `[..., S]`, the label is replaced
    where it is below half of `label_noise`; label: int `[..., S]`, by which; negative: bool `[...,
    S, 4]`, the direction in which a corner moves; part: uniform in [0, 1) `[..., S, 4]`, how far.
    """

    change: jax.Array
    label: jax.Array
    negative: jax.Array
    part: jax.Array


class Slots(NamedTuple):
    """Denoising queries, `[B, S]` each (one image: `[S]`).

    labels: int32, noisy, of the label embedding; filled: bool, there is an object (the content of
    others is 0); boxes: float32 `[B, S, 4]` (centre, sides) in shares of the image; group: int32;
    targets: what they stand for.
    """

    labels: jax.Array
    filled: jax.Array
    boxes: jax.Array
    group: jax.Array
    targets: DenoisingTargets


def slot_count(objects: int, config: DenoisingConfig) -> int:
    """S for batches padded to so many objects per image."""
    return 2 * max(objects, config.queries)


def no_slots(images: int) -> Slots:
    """For training without denoising: S is 0."""
    numbers, flags = jnp.zeros((images, 0), jnp.int32), jnp.zeros((images, 0), bool)
    targets = DenoisingTargets(numbers, flags, flags)
    boxes = jnp.zeros((images, 0, 4))
    return Slots(labels=numbers, filled=flags, boxes=boxes, group=numbers, targets=targets)


def denoise(
    batch: dict[str, jax.Array],
    keys: jax.Array,
    *,
    classes: int,
    config: DenoisingConfig,
    axis_name: str | None = None,
) -> Slots:
    """`denoising_slots` with fresh noise. keys: typed `[B]`, with which each image draws it."""
    slots = slot_count(batch["valid"].shape[1], config)
    noise = jax.vmap(lambda key: draw_noise(key, slots, classes))(keys)
    return denoising_slots(batch, noise, config, axis_name=axis_name)


def draw_noise(rng: jax.Array, slots: int, classes: int) -> Noise:
    """The noise of one image."""
    keys = jax.random.split(rng, 4)
    return Noise(
        jax.random.uniform(keys[0], (slots,)),
        jax.random.randint(keys[1], (slots,), 0, classes),
        negative=jax.random.bernoulli(keys[2], 0.5, (slots, 4)),
        part=jax.random.uniform(keys[3], (slots, 4)),
    )


def denoising_slots(
    batch: dict[str, jax.Array], noise: Noise, config: DenoisingConfig, axis_name: str | None = None
) -> Slots:
    """Noisy copies of the objects of a batch.

    batch: `boxes` `[B, G, 4]` in pixels, `labels` int, `valid` bool `[B, G]`, `size` `[B, 2]`
    (height, width). noise: of B images with `slot_count(G, config)` slots. axis_name: the mesh axis
    over which grouping "batch" looks for the image with most objects.
    """
    counts = jnp.sum(batch["valid"], axis=1, dtype=jnp.int32)
    per_group = counts
    if config.grouping == "batch":
        most = jnp.max(counts) if axis_name is None else jax.lax.pmax(jnp.max(counts), axis_name)
        per_group = jnp.broadcast_to(most, counts.shape)

    def one_image(valid, per_group):
        return _places(valid, per_group, slots=noise.change.shape[-1], budget=config.queries)

    targets, filled, group = jax.vmap(one_image)(batch["valid"], per_group)
    labels = jnp.take_along_axis(batch["labels"], targets.index, axis=1)
    labels = jnp.where(noise.change < 0.5 * config.label_noise, noise.label, labels)
    boxes = jnp.take_along_axis(batch["boxes"], targets.index[..., None], axis=1)
    boxes = boxes / jnp.tile(batch["size"][:, ::-1], 2)[:, None].astype(jnp.float32)
    moved = move_boxes(boxes, noise, targets.positive, scale=config.box_noise)
    boxes = jnp.where(filled[..., None], moved, 0.5)
    return Slots(labels=labels, filled=filled, boxes=boxes, group=group, targets=targets)


def _places(
    valid: jax.Array, per_group: jax.Array, *, slots: int, budget: int
) -> tuple[DenoisingTargets, jax.Array, jax.Array]:
    """(targets, which slots have an object, the group of each) of one image, `[S]` each: groups of
    `per_group` positives and as many negatives, all that the budget allows and at least one."""
    order = jnp.argsort(~valid, stable=True).astype(jnp.int32)
    size = jnp.maximum(per_group, 1)
    place = jnp.arange(slots, dtype=jnp.int32)
    group, rank = place // (2 * size), place % size
    exists = (group < jnp.maximum(budget // size, 1)) & (per_group > 0)
    filled = exists & (rank < jnp.sum(valid))
    positive = filled & (place % (2 * size) < size)
    index = jnp.where(filled, order[rank], 0)
    return DenoisingTargets(index, positive, exists), filled, group


def move_boxes(
    boxes: jax.Array, noise: Noise, positive: jax.Array, *, scale: float = 1.0
) -> jax.Array:
    """Noisy copies of boxes `[..., 4]`, corners in shares of the image: (centre, sides).

    Each corner coordinate moves by up to half of the box's side, of negatives between half and the
    whole of it (times `scale`), and is kept within the image. Where a negative's corners cross its
    side is 0. Nothing is nearer to 0 or 1 than 0.001.
    """
    sides = jnp.tile(boxes[..., 2:] - boxes[..., :2], 2)
    part = noise.part + jnp.where(positive, 0.0, 1.0)[..., None]
    way = jnp.where(noise.negative, -1.0, 1.0)
    corners = jnp.clip(boxes + way * part * (0.5 * scale) * sides, 0.0, 1.0)
    low, high = corners[..., :2], corners[..., 2:]
    moved = jnp.concatenate([(low + high) / 2, high - low], axis=-1)
    return jax.nn.sigmoid(inverse_sigmoid(moved, EPSILON))


def visible_queries(slots: Slots, queries: int) -> jax.Array:
    """bool `[B, S + queries, S + queries]`: what each query (row) may attend to (column)."""
    exists, group = slots.targets.valid, slots.group
    same = (group[:, :, None] == group[:, None, :]) & exists[:, None, :]
    to_slots = jnp.pad(same, ((0, 0), (0, queries), (0, 0)))
    return jnp.pad(to_slots, ((0, 0), (0, 0), (0, queries)), constant_values=True)
