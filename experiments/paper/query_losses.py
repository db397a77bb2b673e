"""Losses of DINO's queries, and whether their pseudo boxes are wrong: Figures 3 and 5 for queries.

Those of the last decoder layer that are matched to a pseudo box, ranked by their unweighted
classification loss among those of the same batch, as query drop ranks them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.paper.roi_losses import Batch, Judge, batches, intervals, share
from weaksam_jax.data.pseudo_boxes import PseudoSamples
from weaksam_jax.detectors.dino import Dino, DinoConfig
from weaksam_jax.detectors.dino.loss import match
from weaksam_jax.detectors.dino.loss_config import QueryDropConfig
from weaksam_jax.engine.precision import products
from weaksam_jax.engine.step import Params
from weaksam_jax.losses.query_drop import drop_queries
from weaksam_jax.losses.set_loss import Targets, query_losses, targets_of

L1_EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)  # shares of the image, summed over a box
RANK_EDGES = tuple(i / 10 for i in range(10))  # share of the batch's matched queries below


@dataclass(frozen=True)
class Queries:
    """Matched queries of all images, arrays `[n]` each: losses float32 (cls: unweighted; l1: on
    shares of the image); rank: the share of the batch's matched queries with less classification
    loss; kept: by query drop; wrong: their pseudo box. cls_background, kept_background: of the
    other queries."""

    cls: np.ndarray
    l1: np.ndarray
    rank: np.ndarray
    kept: np.ndarray
    wrong: np.ndarray
    cls_background: np.ndarray
    kept_background: np.ndarray


class Matched(NamedTuple):
    """What each query of a batch costs, `[B, Q]` each; index: its pseudo box."""

    cls: jax.Array
    l1: jax.Array
    positive: jax.Array
    index: jax.Array
    kept: jax.Array


def sample(
    detector: Dino, params: Params, samples: PseudoSamples, *, judge: Judge, seed: int = 0
) -> Queries:
    """The queries of every image with pseudo boxes. seed: nothing here is random."""
    del seed
    losses, params, found = jax.jit(partial(_losses, detector)), jax.device_put(params), []
    for batch in batches(samples, detector.config.optim.batch_size):
        ids = batch.pop("image_id")
        images = len(np.unique(ids))  # a last batch repeats its first image
        once = np.arange(len(ids)) < images
        batch["valid"] = batch["valid"] & once[:, None]
        matched = Matched(*jax.device_get(losses(params, batch, once)))
        found += _judged(matched, batch, ids[:images], judge=judge)
    return Queries(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _losses(detector: Dino, params: Params, batch: Batch, once: jax.Array) -> Matched:
    """The losses of a batch's queries, without denoising ones, which matching ones never see.

    once: bool `[B]`, False for an image that is repeated, whose queries are not ranked.
    """
    config = detector.config
    with products(config.model.precision):
        images, run = detector.normalised(batch), detector.network.apply
        found = run({"params": params}, images, jnp.asarray(batch["size"]))
    logits, boxes, targets = found.logits[-1:], found.boxes[-1:], _targets(batch)
    slots = match(logits, boxes, targets, config=config.loss)
    focal = {"alpha": config.loss.alpha, "gamma": config.loss.gamma}
    losses = query_losses(logits, boxes, slots, targets=targets, **focal)
    drop = config.loss.drop or QueryDropConfig()
    valid = slots.valid & once[:, None]
    flat = (one.reshape(-1) for one in (losses.ranking, slots.positive, valid))
    kept = drop_queries(*flat, percentile=drop.percentile, background=drop.background)
    return Matched(
        losses.ranking[0],
        losses.l1[0],
        slots.positive[0],
        index=slots.index[0],
        kept=kept.reshape(losses.l1[0].shape),
    )


def _targets(batch: Batch) -> Targets:
    boxes, labels, valid, size = (
        jnp.asarray(batch[name]) for name in ("boxes", "labels", "valid", "size")
    )
    return targets_of(boxes, labels, valid, size=size)


def _judged(
    matched: Matched, batch: Batch, ids: np.ndarray, *, judge: Judge
) -> Iterator[tuple[np.ndarray, ...]]:
    """The columns of `Queries` for each image of a batch."""
    records = {record.image_id: record for record in judge.truth.records}
    ranked = np.sort(matched.cls[matched.positive])
    for row, image_id in enumerate(ids):
        own, record = matched.positive[row], records[int(image_id)]
        boxes, labels = (batch[name][row][matched.index[row][own]] for name in ("boxes", "labels"))
        wrong = judge.wrong(boxes, labels, record, size=batch["size"][row])
        cls, kept = matched.cls[row], matched.kept[row]
        rank = np.searchsorted(ranked, cls[own]) / max(1, len(ranked))
        yield cls[own], matched.l1[row][own], rank, kept[own], wrong, cls[~own], kept[~own]


def summary(queries: Queries, config: DinoConfig) -> dict:
    """Intervals of both losses and of ranks, and what the config's query drop (else the paper's)
    would drop; shares are None where there is nothing to share."""
    drop, wrong = config.loss.drop or QueryDropConfig(), queries.wrong
    return {
        "queries": len(queries.cls),
        "errors": share(wrong),
        "cls": intervals(queries.cls, wrong, what="queries"),
        "l1": intervals(queries.l1, wrong, L1_EDGES, what="queries"),
        "rank": intervals(queries.rank, wrong, RANK_EDGES, what="queries"),
        "percentile": drop.percentile,
        "background": drop.background,
        "dropped": share(~queries.kept),
        "errors_of_dropped": share(wrong[~queries.kept]),
        "errors_of_kept": share(wrong[queries.kept]),
        "background_queries": len(queries.cls_background),
        "dropped_background": share(~queries.kept_background),
    }
