"""Training of Faster R-CNN with RoI drop on pseudo ground truth."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from weaksam_jax.backbones.resnet import is_constant
from weaksam_jax.data.batches import make_batches
from weaksam_jax.data.pseudo_boxes import PseudoSamples
from weaksam_jax.data.records import TagSplit
from weaksam_jax.detectors.faster_rcnn.config import RetrainSettings
from weaksam_jax.detectors.faster_rcnn.loss import faster_rcnn_loss
from weaksam_jax.detectors.faster_rcnn.model import FasterRCNN
from weaksam_jax.detectors.faster_rcnn.network import build_model, init_model, normalise
from weaksam_jax.engine.distributed import process
from weaksam_jax.engine.loop import train
from weaksam_jax.engine.mesh import AXIS, check_batch
from weaksam_jax.engine.optimizer import warmed_steps
from weaksam_jax.engine.step import create_state, make_train_step
from weaksam_jax.errors import BadInput


def train_retrain(
    pgt: Mapping,
    images: TagSplit,
    settings: RetrainSettings,
    folder: str | Path,
    mesh: Mesh,
    seed: int,
    init_params: Mapping[str, Any] | None = None,
    until: int | None = None,
) -> dict:
    """Trains on pseudo boxes only and returns the parameters; resumes from `folder/checkpoints`.

    pgt: COCO dictionary for `images`; images without a box are left out. init_params: backbone
    parameters to start from (those of the MIL detector, which saw tags only, or ImageNet's);
    modules the backbone does not have are passed over. The log's name of the stage is that of the
    folder; the shares of RoIs that were dropped stand in it for every step. until: stop after so
    many steps of the schedule. Raises `BadInput` when pgt or init_params do not fit.
    """
    check_batch(settings.batch, mesh.size, settings.accumulate)
    samples = PseudoSamples(pgt, images, settings.scales, settings.augmentation)
    batches = make_batches(
        samples, samples.groups, settings.batch, seed, draw=samples.draw, process=process()
    )
    model = build_model(settings, len(images.classes))
    init_key, train_key = jax.random.split(jax.random.key(seed))
    params = init_model(model, settings.scales[0][0], init_key, init_params)
    tx = make_optimizer(settings, params)
    state = create_state(params, tx, train_key, mesh)
    state = train(
        state,
        make_step(model, settings, tx, mesh),
        batches,
        settings.steps if until is None else min(until, settings.steps),
        folder,
        mesh,
        checkpoint_every=settings.checkpoint_every,
        name=Path(folder).name,
        every_step=("dropped_foreground", "dropped_background"),
    )
    return jax.device_get(state.params)


def make_step(
    model: FasterRCNN, settings: RetrainSettings, tx: optax.GradientTransformation, mesh: Mesh
) -> Callable:
    """The train step of `engine.step`, which also tells the loss at which step it is (drop).

    Raises `BadInput` when turns (accumulate) are asked for and RoIs kept in a turn divide its loss:
    a turn in which most were dropped would weigh as much as the others.
    """
    if settings.accumulate > 1 and settings.drop and settings.drop.normaliser == "n_kept":
        hint = "choose normaliser n_valid, or accumulate 1 on more devices"
        raise BadInput("retrain.accumulate", "does not go with drop.normaliser n_kept", hint)

    def loss_fn(params, batch, rng):
        params = _hold(params, settings.frozen)
        image = normalise(batch["image"], batch["size"], settings.backbone)
        step = batch["step"][0]
        return faster_rcnn_loss(
            model, params, {**batch, "image": image}, step, rng,
            settings.detection, settings.drop, AXIS,
        )  # fmt: skip

    inner = make_train_step(loss_fn, tx, mesh, settings.accumulate)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        return inner(state, {**batch, "step": jnp.full(len(batch["image"]), state.step)})

    return step


def make_optimizer(settings: RetrainSettings, params: dict) -> optax.GradientTransformation:
    """Optimizer and learning rate schedule; frozen backbone modules get no update at all."""
    rate = settings.learning_rate
    ramp = min(settings.warmup, settings.steps // 2)  # a short trial has a short warm-up
    if settings.milestones:
        schedule = warmed_steps(rate, ramp, 1 / 1000, settings.milestones)
    else:
        after = optax.cosine_decay_schedule(rate, settings.steps - ramp)
        warmup = optax.linear_schedule(rate / 1000, rate, ramp)
        schedule = optax.join_schedules([warmup, after], [ramp])
    if settings.optimizer == "sgd":
        decay = optax.add_decayed_weights(settings.weight_decay)
        tx = optax.chain(decay, optax.sgd(schedule, momentum=0.9))
    else:
        tx = optax.adamw(schedule, weight_decay=settings.weight_decay)
    if settings.clip is not None:
        tx = optax.chain(optax.clip_by_global_norm(settings.clip), tx)
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "frozen" if _is_frozen(path, settings.frozen) else "free", params
    )
    return optax.multi_transform({"free": tx, "frozen": optax.set_to_zero()}, labels)


def _is_frozen(path: tuple, frozen: tuple[str, ...]) -> bool:
    names = [entry.key for entry in path]
    return names[0] == "backbone" and (names[1] in frozen or is_constant(names[1:], 0))


def _hold(params: dict, frozen: tuple[str, ...]) -> dict:
    """Frozen parameters as constants, so that no gradient is computed for them."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jax.lax.stop_gradient(x) if _is_frozen(path, frozen) else x, params
    )
