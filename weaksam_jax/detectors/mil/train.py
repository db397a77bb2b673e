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
from weaksam_jax.detectors.mil.config import WsodSettings
from weaksam_jax.detectors.mil.features import frozen_features
from weaksam_jax.detectors.mil.loss import mil_loss
from weaksam_jax.detectors.mil.model import MilDetector
from weaksam_jax.detectors.mil.network import build_model, load_init, network_input
from weaksam_jax.detectors.mil.optimizer import make_optimizer
from weaksam_jax.detectors.mil.samples import MilSamples, View
from weaksam_jax.engine.distributed import process, run_leader_first
from weaksam_jax.engine.loop import train
from weaksam_jax.engine.mesh import check_batch
from weaksam_jax.engine.step import create_state, make_train_step


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
    samples.features = run_leader_first(lambda: frozen_features(split, settings, folder, backbone))
    model = build_model(settings, len(split.classes))
    init_key, tag_key, mil_key = jax.random.split(jax.random.key(seed), 3)
    params = init_params(model, samples, settings, init_key)
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
    return _tag_entropy(logits, batch), {}


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
        batch["valid"],
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
    terms = {name: value.mean() for name, value in terms.items()}
    if logits is None:  # a network without class maps
        return losses.mean(), terms
    terms["tags"] = _tag_entropy(logits, batch)
    return losses.mean() + settings.tag_weight * terms["tags"], terms


def _tag_entropy(logits: jax.Array, batch: dict) -> jax.Array:
    """Mean binary cross entropy; 0 for an image that is an example of nothing (no valid boxes)."""
    entropy = optax.sigmoid_binary_cross_entropy(logits, batch["tags"])
    return jnp.where(batch["valid"].any(1, keepdims=True), entropy, 0.0).mean()


def init_params(
    model: MilDetector, samples: MilSamples, settings: WsodSettings, key: jax.Array
) -> dict:
    """Fresh parameters, of the shapes that the first sample gives, or those of `settings.init`."""
    view = View(0, False)
    batch = {name: value[None] for name, value in samples.show(0, slice(None), view).items()}
    images, inside = network_input(settings, batch)
    params = jax.jit(model.init)(key, images, inside, batch["boxes"], batch["prior"])["params"]
    return load_init(settings, params)
