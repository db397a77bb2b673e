"""Losses of DINO: sets of queries of every decoder layer, of the encoder and of denoising."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from weaksam_jax.detectors.dino.loss_config import LossConfig, QueryDropConfig
from weaksam_jax.detectors.dino.outputs import TrainingOutputs
from weaksam_jax.losses.query_drop import drop_queries
from weaksam_jax.losses.set_loss import (
    QueryLosses,
    Slots,
    Targets,
    matching_cost,
    query_losses,
    targets_of,
)
from weaksam_jax.ops.assignment import assign_all


class Group(NamedTuple):
    """Queries that are divided by one count and ranked alike.

    losses: `[L, B, Q]` each; slots: `[L, B, Q]` each; keep: bool `[L, B, Q]`, what query drop
    leaves; count: the divisor, a float32 scalar; names: of the L layers' losses, before `loss_`.
    """

    losses: QueryLosses
    slots: Slots
    keep: jax.Array
    count: jax.Array
    names: tuple[str, ...]


def dino_loss(
    outputs: TrainingOutputs,
    batch: dict[str, jax.Array],
    *,
    step: jax.Array,
    config: LossConfig,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sum of all losses of DINO with query drop (equation 4), and (terms, dropped shares).

    batch: `boxes` `[B, G, 4]`, pixels; `labels` int `[B, G]`; `valid` bool `[B, G]`; `size` `[B,
    2]`, (height, width) of the images without padding. step: int scalar; dropping is active from
    `config.drop.start`. axis_name: the mesh axis over which objects are counted and queries ranked.

    Terms, weighted: loss_cls, loss_bbox, loss_iou of the last decoder layer, `d0.loss_...` of the
    first and so on, `enc_loss_...`, `dn_loss_...`, `d0.dn_loss_...` (mmdetection's names). Each is
    a sum over queries divided by the number of positive ones, dropped or not, of all devices
    together, at least 1, and multiplied by the number of devices: the mean over devices is the loss
    of the whole batch. Shares, with drop: `dropped_things` of the decoder's positive queries,
    `dropped_background` if those are ranked, and the same of `dropped_encoder_...` and
    `dropped_denoising_...` if those take part.
    """
    targets = targets_of(batch["boxes"], batch["labels"], batch["valid"], size=batch["size"])
    groups = _groups(outputs, targets, config=config, axis_name=axis_name)
    drop, terms, shares = config.drop, {}, {}
    for name, group in groups.items():
        if drop is not None and _takes_part(name, drop):
            group = _dropped(group, step=step, drop=drop, axis_name=axis_name)
            shares |= _shares(name, group, drop=drop, axis_name=axis_name)
        terms |= _terms(group, config)
    return sum(terms.values()), {**terms, **shares}


def match(logits: jax.Array, boxes: jax.Array, targets: Targets, *, config: LossConfig) -> Slots:
    """Hungarian matching of logits `[L, B, Q, C]` and boxes `[L, B, Q, 4]`, every layer and image
    on its own: slots `[L, B, Q]`."""
    weights = {"cls": config.cost_cls, "l1": config.cost_l1, "giou": config.cost_giou}
    focal = {"alpha": config.alpha, "gamma": config.gamma}
    cost = matching_cost(logits, boxes, targets, **weights, **focal)
    target = assign_all(cost, jnp.broadcast_to(targets.valid, cost.shape[:-1])).target
    return Slots(jnp.maximum(target, 0), target >= 0, jnp.ones_like(target, bool))


def _groups(
    outputs: TrainingOutputs, targets: Targets, *, config: LossConfig, axis_name: str | None
) -> dict[str, Group]:
    """The decoder's queries, the encoder's and those of denoising; nothing is dropped yet."""
    logits = jnp.concatenate([outputs.logits, outputs.encoder_logits[None]])
    boxes = jnp.concatenate([outputs.boxes, outputs.encoder_boxes[None]])
    slots = match(logits, boxes, targets, config=config)
    layers = len(outputs.logits)
    focal = {"alpha": config.alpha, "gamma": config.gamma}
    losses = query_losses(logits, boxes, slots, targets=targets, **focal)
    objects = _divisor(targets.valid, axis_name)
    found = {"": slice(layers), "encoder": slice(layers, None)}
    names = {"": tuple(_of_layers(layers)), "encoder": ("enc_",)}
    groups = {
        name: _group(losses, slots, part=part, count=objects, names=names[name])
        for name, part in found.items()
    }
    noised = Slots(*(_repeat(one, layers) for one in outputs.denoising_targets))
    denoising = outputs.denoising_logits, outputs.denoising_boxes
    own = query_losses(*denoising, noised, targets=targets, **focal)
    count = _divisor(noised.positive[0] & noised.valid[0], axis_name)
    names = tuple(f"{name}dn_" for name in _of_layers(layers))
    groups["denoising"] = _group(own, noised, part=slice(None), count=count, names=names)
    return groups


def _group(losses: QueryLosses, slots: Slots, *, part: slice, count, names) -> Group:
    losses = QueryLosses(*(one[part] for one in losses))
    slots = Slots(*(one[part] for one in slots))
    return Group(losses, slots, slots.valid, count=count, names=names)


def _repeat(one: jax.Array, layers: int) -> jax.Array:
    return jnp.broadcast_to(one, (layers, *one.shape))


def _of_layers(count: int) -> Iterator[str]:
    """Names of decoder layers; the last one has none."""
    yield from (f"d{layer}." for layer in range(count - 1))
    yield ""


def _divisor(positive: jax.Array, axis_name: str | None) -> jax.Array:
    """How many there are per device, at least 1 in all."""
    count, least = jnp.sum(positive, dtype=jnp.float32), jnp.float32(1)
    if axis_name is not None:
        count, least = jax.lax.pmean(count, axis_name), 1 / jax.lax.psum(least, axis_name)
    return jnp.maximum(count, least)


def _takes_part(name: str, drop: QueryDropConfig) -> bool:
    return {"": True, "encoder": drop.encoder, "denoising": drop.denoising}[name]


def _dropped(group: Group, *, step, drop: QueryDropConfig, axis_name: str | None) -> Group:
    """What query drop keeps of a group, each layer ranked on its own."""
    flat = [x.reshape(len(x), -1) for x in (group.losses.ranking, *group.slots[1:])]
    keep = drop_queries(
        *flat,
        percentile=drop.percentile,
        background=drop.background,
        axis_name=axis_name if drop.scope == "global" else None,
    )
    active = jnp.asarray(step) >= drop.start
    keep = (keep | ~active).reshape(group.keep.shape)
    return group._replace(keep=keep & group.slots.valid)


def _terms(group: Group, config: LossConfig) -> dict[str, jax.Array]:
    """The weighted losses of every layer of a group."""
    d = group.keep.astype(jnp.float32)  # a product, so that a NaN loss is not hidden
    weights = {"cls": config.cls, "l1": config.l1, "giou": config.giou}
    terms = {}
    for field, end in (("cls", "loss_cls"), ("l1", "loss_bbox"), ("giou", "loss_iou")):
        sums = jnp.sum(getattr(group.losses, field) * d, axis=(1, 2)) / group.count
        for layer, name in enumerate(group.names):
            terms[name + end] = weights[field] * sums[layer]
    return terms


def _shares(
    name: str, group: Group, *, drop: QueryDropConfig, axis_name: str | None
) -> dict[str, jax.Array]:
    """Dropped shares of a group's things and background, over all layers and devices."""
    kinds = {"things": group.slots.positive}
    if drop.background:
        kinds["background"] = ~group.slots.positive
    shares = {}
    for kind, mask in kinds.items():
        whole = mask & group.slots.valid
        counts = [jnp.sum(one, dtype=jnp.float32) for one in (whole & ~group.keep, whole)]
        if axis_name is not None:
            counts = jax.lax.pmean(counts, axis_name)
        share = counts[0] / jnp.where(counts[1] > 0, counts[1], 1.0)
        shares["_".join(filter(None, ("dropped", name, kind)))] = share
    return shares
