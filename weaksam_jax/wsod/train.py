"""Training of the MIL detector on tags and proposals (WSDDN with OICR or MIST refinement)."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from weaksam_jax.data.batches import make_batches
from weaksam_jax.data.records import TagSplit
from weaksam_jax.engine.distributed import leader_first, process
from weaksam_jax.engine.loop import train
from weaksam_jax.engine.optimizer import Factors, adam_l2, warmed_steps
from weaksam_jax.engine.mesh import check_batch
from weaksam_jax.engine.step import create_state, make_train_step
from weaksam_jax.losses.mil import mil_loss
from weaksam_jax.models.mil import MilDetector
from weaksam_jax.wsod.features import frozen_features
from weaksam_jax.wsod.network import build_model, network_input
from weaksam_jax.wsod.samples import MilSamples, View
from weaksam_jax.wsod.settings import WsodSettings


def train_wsod(
    split: TagSplit,
    proposals_root: str | Path,
    settings: WsodSettings,
    folder: str | Path,
    mesh: Mesh,
    seed: int,
    backbone: Any = None,
    clues_root: str | Path | None = None,
) -> dict:
    """Trains on tags and proposals; returns the parameters (nested dictionary of arrays).

    backbone: parameters of the frozen network ("lite0", see `bridge.convert`). clues_root: where
    the clues are stored, which settings with `clue_evidence` or `clue_power` need. Resumes from the
    checkpoints below `folder`, logs to `folder/../log.jsonl`; the same seed gives the same bits on
    the same machine.
    """
    folder = Path(folder)
    check_batch(settings.batch, mesh.size, settings.accumulate)
    samples = MilSamples(split, proposals_root, settings, clues_root)
    # Takes minutes, so bad proposals and clues have been refused before.
    samples.features = leader_first(lambda: frozen_features(split, settings, folder, backbone))
    model = build_model(settings, len(split.classes))
    init_key, tag_key, mil_key = jax.random.split(jax.random.key(seed), 3)
    params = _init(model, samples, settings, init_key)
    for name, steps, rate, loss, key in (
        ("tags", settings.pretrain_steps, settings.pretrain_rate, tag_loss, tag_key),
        ("mil", settings.steps, settings.rate, detector_loss, mil_key),
    ):
        if not steps:
            continue
        tx = make_optimizer(settings, rate, steps)
        loss_fn = functools.partial(loss, model, settings)
        step = make_train_step(loss_fn, tx, mesh, settings.accumulate)
        batches = make_batches(
            samples, samples.groups, settings.batch, seed, draw=samples.draw, process=process()
        )
        state = create_state(params, tx, key, mesh)
        state = train(
            state,
            step,
            batches,
            steps,
            folder / name,
            mesh,
            checkpoint_every=settings.checkpoint_every,
            name=f"wsod_{name}",
            log=folder.parent / "log.jsonl",
        )
        params = jax.device_get(state.params)
    return params


def tag_loss(model, settings, params, batch, rng) -> tuple[jax.Array, dict]:
    """Binary cross entropy of the image-level logits: the stand-in for ImageNet pre-training."""
    images, inside = network_input(settings, batch)
    logits = model.apply(
        {"params": params}, images, inside, method=lambda m, x, i: m.tag_logits(m.features(x), i)
    )
    return _tag_entropy(logits, batch["tags"]), {}


def detector_loss(model, settings, params, batch, rng) -> tuple[jax.Array, dict]:
    """Mean over the images of the MIL losses, plus the image-level loss on the class maps."""
    images, inside = network_input(settings, batch)
    logits, outputs = model.apply(
        {"params": params},
        images,
        inside,
        batch["boxes"],
        batch["prior"],
        True,
        rngs={"dropout": rng, "drop_block": jax.random.fold_in(rng, 1)},
    )
    one_image = functools.partial(
        mil_loss,
        method=settings.method,
        oicr_rule=settings.oicr_rule,
        ignore_below=settings.ignore_below,
        reduction=settings.image_loss,
    )
    losses, terms = jax.vmap(one_image)(outputs, batch["boxes"], batch["valid"], batch["tags"])
    tags = _tag_entropy(logits, batch["tags"])
    terms = {name: value.mean() for name, value in terms.items()} | {"tags": tags}
    return losses.mean() + settings.tag_weight * tags, terms


def make_optimizer(
    settings: WsodSettings, rate: float, steps: int
) -> optax.GradientTransformation:
    """Optimizer and schedule of `settings` for `steps` steps; a short trial has a short warm-up."""
    warmup = min(settings.warmup, steps // 2)
    if settings.optimizer == "adam_l2":
        schedule = warmed_steps(rate, warmup, settings.warmup_from, settings.milestones)
        decayed, rates = _published_factors(settings)
        tx = adam_l2(schedule, settings.weight_decay, decayed, rates)
    else:
        schedule = optax.warmup_cosine_decay_schedule(
            rate * settings.warmup_from, rate, warmup, steps, rate / 50
        )
        tx = optax.adamw(schedule, weight_decay=settings.weight_decay)
    return tx if settings.clip is None else optax.chain(optax.clip_by_global_norm(settings.clip), tx)


def _published_factors(settings: WsodSettings) -> tuple[Factors, Factors]:
    """Factors of weight decay and of the rate by a parameter's name (20-wsod.md, section 3).

    Where the refinement branches have a rate of their own, the released OICR's rule for them
    replaces the rule for biases: theirs decay and are not doubled.
    """

    def refined(name: str) -> bool:
        return settings.refine_rate != 1 and name.startswith(("refine", "deltas"))

    def decayed(name: str) -> float:
        return 0.0 if name.endswith("bias") and not refined(name) else 1.0

    def rates(name: str) -> float:
        if name.startswith(frozen_names(settings)):
            return 0.0
        return settings.refine_rate if refined(name) else 2.0 if name.endswith("bias") else 1.0

    return decayed, rates


def _tag_entropy(logits: jax.Array, tags: jax.Array) -> jax.Array:
    """Mean binary cross entropy; an image without tags is no negative (see `image_loss`)."""
    entropy = optax.sigmoid_binary_cross_entropy(logits, tags)
    return jnp.where(tags.any(1, keepdims=True), entropy, 0.0).mean()


def _init(model: MilDetector, samples: MilSamples, settings: WsodSettings, key: jax.Array) -> dict:
    """Fresh parameters, of the shapes that the first sample gives."""
    view = View(0, False)
    batch = {name: value[None] for name, value in samples.show(0, slice(None), view).items()}
    images, inside = network_input(settings, batch)
    return jax.jit(model.init)(key, images, inside, batch["boxes"], batch["prior"])["params"]
