"""Retraining: Faster R-CNN with RoI drop on pseudo ground truth, and its detections."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from weaksam_jax.data.batches import Canvas, make_batches
from weaksam_jax.data.records import TagSplit
from weaksam_jax.engine.loop import train
from weaksam_jax.engine.mesh import AXIS
from weaksam_jax.engine.step import create_state, make_train_step
from weaksam_jax.errors import BadInput
from weaksam_jax.losses.detection import DetectionSettings, DropSettings, faster_rcnn_loss
from weaksam_jax.models.faster_rcnn import FasterRCNN, detect
from weaksam_jax.models.fpn import MiniTrunk
from weaksam_jax.models.lite0 import Lite0, lite0_input
from weaksam_jax.models.mini_cnn import mini_input
from weaksam_jax.retrain_data import Augmentation, PseudoSamples
from weaksam_jax.retrain_detect import detect_split


@dataclass(frozen=True)
class RetrainSettings:
    """Everything that decides the retrained weights and detections, but for the seed and the data.

    Detector: see `FasterRCNN`. frozen: names of backbone modules that keep their weights.
    Optimizer: SGD with momentum 0.9 (or AdamW), linear warm-up, x0.1 at `milestones` (steps) or
    cosine to 0 when there are none; clip: largest norm of the gradient (None: no clipping). drop:
    None switches RoI drop off. Test: views (canvas choices, the best fitting one per image) x
    {plain, mirrored}, each gives `max_detections`; their union goes through one class-wise NMS.
    tag_power: scores are multiplied by the clue network's probability of the class in the image, to
    this power (0: off, the paper).
    """

    backbone: Literal["mini_cnn", "lite0"] = "mini_cnn"
    frozen: tuple[str, ...] = ()
    strides: tuple[int, ...] = (8, 16, 32)
    anchor_sizes: tuple[tuple[float, ...], ...] = ((32,), (56,), (96,))
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    channels: int = 64
    extra_levels: int = 0
    fc_width: int = 256
    canonical_size: float = 96.0
    canonical_level: int = 1
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    drop: DropSettings | None = field(default_factory=DropSettings)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02
    weight_decay: float = 1e-4
    clip: float | None = None
    warmup: int = 100
    milestones: tuple[int, ...] = ()
    steps: int = 1000
    batch: int = 8
    canvases: tuple[Canvas, ...] = ((192, 192),)
    augmentation: Augmentation = field(default_factory=Augmentation)
    checkpoint_every: int = 200
    views: tuple[tuple[Canvas, ...], ...] = (((192, 192),),)
    mirrored: bool = True
    test_batch: int = 8
    test_pre_nms: int = 300
    test_post_nms: int = 100
    score_threshold: float = 0.05
    nms: float = 0.5
    max_detections: int = 100
    tag_power: float = 0.0


def mini() -> RetrainSettings:
    """The embedded mini set on 2 CPU cores, from the MIL detector's backbone.

    tau_reg is not the paper's 1.0, which is meant for a pre-trained R50: here it dropped every
    foreground RoI from its first step on, and the detector ended at AP50 3 instead of 54.
    """
    return RetrainSettings(
        detection=DetectionSettings(rpn_batch=64, pre_nms=200, post_nms=100, roi_batch=64),
        drop=DropSettings(start=600, tau_reg=6.0),
        canvases=((160, 160),),
        augmentation=Augmentation(scale=(0.7, 1.4), colour=0.2),
        optimizer="adamw",
        learning_rate=1e-3,
        clip=5.0,
        steps=1000,
        score_threshold=0.01,
    )


def light() -> RetrainSettings:
    """Photographs on 2 CPU cores: EfficientNet-Lite0, only its blocks at stride 32 trained.

    tau_reg as in `mini`: the mean weighted L1 of a foreground RoI is still 3 after 340 steps.
    tag_power: a few thousand steps on pseudo boxes teach the classes of an image less well than the
    clue network knows them (tag mAP 86 on voc07-small).
    """
    canvases = ((288, 384), (384, 288))
    return RetrainSettings(
        backbone="lite0",
        frozen=("stem", *(f"block{i}" for i in range(11))),
        strides=(8, 16, 32, 64),
        anchor_sizes=((32,), (64,), (128,), (256,)),
        channels=96,
        extra_levels=1,
        canonical_size=112.0,
        detection=DetectionSettings(rpn_batch=128, pre_nms=400, post_nms=200, roi_batch=128),
        drop=DropSettings(start=1100, tau_reg=6.0),
        optimizer="adamw",
        learning_rate=5e-4,
        clip=5.0,
        steps=2000,
        batch=4,
        canvases=canvases,
        augmentation=Augmentation(scale=(0.75, 1.25), colour=0.2),
        views=(canvases, ((384, 512), (512, 384))),
        test_batch=4,
        test_pre_nms=500,
        test_post_nms=200,
        score_threshold=0.01,
        tag_power=1.0,
    )


def build_model(settings: RetrainSettings, classes: int) -> FasterRCNN:
    """The detector of these settings."""
    backbone = {"mini_cnn": MiniTrunk, "lite0": Lite0}[settings.backbone]()
    return FasterRCNN(
        backbone,
        classes,
        settings.strides,
        settings.anchor_sizes,
        settings.anchor_ratios,
        settings.channels,
        settings.extra_levels,
        settings.fc_width,
        canonical_size=settings.canonical_size,
        canonical_level=settings.canonical_level,
    )


def train_retrain(
    pgt: Mapping,
    images: TagSplit,
    settings: RetrainSettings,
    folder: str | Path,
    mesh: Mesh,
    seed: int,
    init_params: Mapping[str, Any] | None = None,
) -> dict:
    """Trains on pseudo boxes only and returns the parameters; resumes from `folder/checkpoints`.

    pgt: COCO dictionary for `images`; images without a box are left out. init_params: backbone
    parameters to start from (those of the MIL detector, which saw tags only, or ImageNet's);
    modules the backbone does not have are passed over. The log's name of the stage is that of the
    folder. Raises `BadInput` when pgt or init_params do not fit.
    """
    samples = PseudoSamples(pgt, images, settings.canvases, settings.augmentation)
    batches = make_batches(samples, samples.groups, settings.batch, seed)
    model = build_model(settings, len(images.classes))
    init_key, train_key = jax.random.split(jax.random.key(seed))
    params = init_model(model, settings.canvases[0], init_key, init_params)
    tx = make_optimizer(settings, params)
    state = create_state(params, tx, train_key, mesh)
    state = train(
        state,
        make_step(model, settings, tx, mesh),
        batches,
        settings.steps,
        folder,
        mesh,
        checkpoint_every=settings.checkpoint_every,
        name=Path(folder).name,
    )
    return jax.device_get(state.params)


def detect_retrain(
    params: Mapping[str, Any],
    split: TagSplit,
    settings: RetrainSettings,
    progress: bool = True,
    tag_logits: np.ndarray | None = None,
) -> list[dict]:
    """COCO results of every image of `split` (its tags are not read), with the test-time views.

    tag_logits: what a clue network predicts of each image, float `[images, C]`; settings with a
    `tag_power` need them.
    """
    factors = None
    if settings.tag_power:
        if tag_logits is None:
            cure = "give tag_logits, or set tag_power to 0"
            raise BadInput("the retrained detector", "has no tag logits", cure)
        factors = np.asarray(jax.nn.sigmoid(tag_logits) ** settings.tag_power)
    model = build_model(settings, len(split.classes))

    @jax.jit
    def run(params, images, sizes):
        return detect(
            model,
            params,
            normalise(images, sizes, settings.backbone),
            sizes,
            settings.test_pre_nms,
            settings.test_post_nms,
            settings.score_threshold,
            settings.nms,
            settings.max_detections,
        )

    params = jax.device_put(params)
    return detect_split(
        lambda images, sizes: jax.device_get(run(params, images, sizes)),
        split,
        settings.views,
        settings.mirrored,
        settings.test_batch,
        settings.nms,
        settings.max_detections,
        progress,
        factors,
    )


def make_step(
    model: FasterRCNN, settings: RetrainSettings, tx: optax.GradientTransformation, mesh: Mesh
) -> Callable:
    """The train step of `engine.step`, which also tells the loss at which step it is (drop)."""

    def loss_fn(params, batch, rng):
        params = _hold(params, settings.frozen)
        image = normalise(batch["image"], batch["size"], settings.backbone)
        step = batch["step"][0]
        return faster_rcnn_loss(
            model, params, {**batch, "image": image}, step, rng,
            settings.detection, settings.drop, AXIS,
        )  # fmt: skip

    inner = make_train_step(loss_fn, tx, mesh)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        return inner(state, {**batch, "step": jnp.full(len(batch["image"]), state.step)})

    return step


def normalise(images: jax.Array, sizes: jax.Array, backbone: str) -> jax.Array:
    """uint8 `[B, H, W, 3]` -> the backbone's float input, 0 outside the images' (height, width)."""
    scaled = {"mini_cnn": mini_input, "lite0": lite0_input}[backbone](images)
    rows = jnp.arange(images.shape[1])[None, :] < sizes[:, :1]
    columns = jnp.arange(images.shape[2])[None, :] < sizes[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], scaled, 0)


def init_model(
    model: FasterRCNN, canvas: Canvas, key: jax.Array, backbone: Mapping[str, Any] | None
) -> dict:
    """Fresh parameters, with those of `backbone` (nested dictionary) where given.

    A backbone that is frozen in part or makes sense only with ImageNet weights must be given.
    """
    if backbone is None and not isinstance(model.backbone, MiniTrunk):
        cure = "give the weights that bridge.convert writes"
        raise BadInput("backbone weights", "are missing (this backbone is not for scratch)", cure)
    shapes = (jnp.zeros((1, *canvas, 3)), jnp.zeros((1, 1, 4)))
    params = jax.jit(model.init)(key, *shapes)["params"]
    if backbone is None:
        return params
    whole = params["backbone"]
    part = whole["stem"] if isinstance(model.backbone, MiniTrunk) else whole
    given = flax.traverse_util.flatten_dict(backbone)
    own = flax.traverse_util.flatten_dict(part)
    wrong = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if wrong:
        problem = f"{'/'.join(wrong[0])} is missing or of another shape"
        raise BadInput("backbone weights", problem, "give weights of the same backbone")
    own = {name: jnp.asarray(given[name], value.dtype) for name, value in own.items()}
    part = flax.traverse_util.unflatten_dict(own)
    whole = {**whole, "stem": part} if isinstance(model.backbone, MiniTrunk) else part
    return {**params, "backbone": whole}


def make_optimizer(settings: RetrainSettings, params: dict) -> optax.GradientTransformation:
    """Optimizer and learning rate schedule; frozen backbone modules get no update at all."""
    rate = settings.learning_rate
    ramp = min(settings.warmup, settings.steps // 2)  # a short trial has a short warm-up
    if settings.milestones:
        after = optax.piecewise_constant_schedule(
            rate, {step - ramp: 0.1 for step in settings.milestones}
        )
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
    if not settings.frozen:
        return tx
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "frozen" if _is_frozen(path, settings.frozen) else "free", params
    )
    return optax.multi_transform({"free": tx, "frozen": optax.set_to_zero()}, labels)


def _is_frozen(path: tuple, frozen: tuple[str, ...]) -> bool:
    names = [entry.key for entry in path[:2]]
    return names[0] == "backbone" and names[1] in frozen


def _hold(params: dict, frozen: tuple[str, ...]) -> dict:
    """Frozen parameters as constants, so that no gradient is computed for them."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jax.lax.stop_gradient(x) if _is_frozen(path, frozen) else x, params
    )
