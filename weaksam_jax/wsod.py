"""Weakly supervised detection: a MIL detector trained on tags and proposals (WSDDN with OICR or
MIST refinement), and its multi-view test."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from weaksam_jax.boxes import clip, decode, to_xywh
from weaksam_jax.data.batches import make_batches
from weaksam_jax.data.records import TagSplit
from weaksam_jax.engine.loop import train
from weaksam_jax.engine.step import create_state, make_train_step
from weaksam_jax.errors import BadInput
from weaksam_jax.files import fingerprint
from weaksam_jax.losses.mil import mil_loss
from weaksam_jax.models.lite0 import Lite0, lite0_input
from weaksam_jax.models.mil import MilDetector
from weaksam_jax.models.mini_cnn import MiniCnn, mini_input
from weaksam_jax.ops.nms import multiclass_nms
from weaksam_jax.ops.roi import roi_align, roi_pool
from weaksam_jax.wsod_data import (
    FeatureCache,
    MilSamples,
    Scale,
    View,
    restore_boxes,
)


@dataclass(frozen=True)
class WsodSettings:
    """Everything that decides the detector's weights and detections, but for the seed and data.

    method: "mist" (several pseudo boxes a class, box regression) or "oicr" (one, none). backbone:
    "mini_cnn" is trained from scratch, first `pretrain_steps` as a classifier of tags; "lite0" is
    frozen and its maps are cached on disk. neck: channels of a trained 1x1 convolution on the maps,
    or None. pooling: "align" or "max"; pool_size: its output side. evidence: weight in the
    detection stream of the contrast of the detector's own class maps (`class_evidence`) and of the
    proposal's quality; clue_evidence: weight of what the clue network's stored maps say of it
    (`weaksam_jax.clue_evidence`), which at test multiplies its score, to the power of clue_power.
    scales: canvases (height, width) of each scale, drawn for each batch in training and all
    visited, plain and mirrored, at test. jitter: range of a random further factor; colour: of
    random gains; hide: share of hidden patches (none of the three with cached maps).
    max_proposals: padded number N. min_side: least side of a proposal in original pixels.
    tag_weight: weight of the image-level loss on the class maps beside the MIL losses. nms,
    max_detections: at test.
    """

    method: Literal["mist", "oicr"] = "mist"
    backbone: Literal["mini_cnn", "lite0"] = "mini_cnn"
    neck: int | None = None
    pooling: Literal["align", "max"] = "align"
    pool_size: int = 5
    width: int = 256
    dropout: float = 0.3
    evidence: float = 16.0
    clue_evidence: float = 0.0
    clue_power: float = 0.0
    scales: tuple[Scale, ...] = (((160, 192), (192, 160)),)
    jitter: tuple[float, float] = (0.75, 1.0)
    colour: float = 0.1
    hide: float = 0.5
    max_proposals: int = 104
    min_side: float = 12.0
    pretrain_steps: int = 1200
    pretrain_rate: float = 2e-3
    steps: int = 800
    batch: int = 8
    rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 1e-3
    clip: float = 5.0
    tag_weight: float = 1.0
    checkpoint_every: int = 200
    test_batch: int = 10
    nms: float = 0.3
    max_detections: int = 100


def mini() -> WsodSettings:
    """The embedded mini set on two CPU cores."""
    return WsodSettings()


def light() -> WsodSettings:
    """Photographs on two CPU cores: frozen EfficientNet-Lite0 features and the clue network's maps.

    Without the clues the same network has CorLoc 2 to 20 (docs/results.md): what fires most in
    features that are frozen is the most telling part.
    """
    return WsodSettings(
        backbone="lite0",
        neck=160,
        width=512,
        evidence=0.0,
        clue_evidence=40.0,
        clue_power=8.0,
        scales=(((448, 576), (576, 448)),),
        max_proposals=256,
        min_side=12.0,
        pretrain_steps=0,
        steps=1600,
        batch=4,
        weight_decay=1e-2,
        tag_weight=0.0,
        checkpoint_every=400,
        test_batch=4,
    )


STRIDE = {"mini_cnn": 8, "lite0": 16}
MAPS = ("map0", "map1")  # cached maps of Lite0: block 10 at stride 16, ImageNet's head at 32


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
    samples = MilSamples(split, proposals_root, settings, clues_root)
    samples.features = _features(split, settings, folder, backbone)  # takes minutes: comes last
    model = build_model(settings, len(split.classes))
    init_key, tag_key, mil_key = jax.random.split(jax.random.key(seed), 3)
    params = _init(model, samples, settings, init_key)
    for name, steps, rate, loss, key in (
        ("tags", settings.pretrain_steps, settings.pretrain_rate, tag_loss, tag_key),
        ("mil", settings.steps, settings.rate, detector_loss, mil_key),
    ):
        if not steps:
            continue
        tx = _optimizer(settings, rate, steps)
        step = make_train_step(functools.partial(loss, model, settings), tx, mesh)
        batches = make_batches(samples, samples.groups, settings.batch, seed, draw=samples.draw)
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


def build_model(settings: WsodSettings, classes: int) -> MilDetector:
    """The detector of these settings; with "lite0" it takes cached maps."""
    scale = 1.0 / STRIDE[settings.backbone]
    if settings.pooling == "align":
        pool = functools.partial(
            roi_align,
            spatial_scale=scale,
            output_size=settings.pool_size,
            sampling_ratio=1,
            chunk=0,
        )
    else:
        pool = functools.partial(roi_pool, spatial_scale=scale, output_size=settings.pool_size)
    return MilDetector(
        classes,
        pool,
        MiniCnn(name="backbone") if settings.backbone == "mini_cnn" else None,
        len(MAPS) if settings.backbone == "lite0" else 1,
        settings.neck,
        settings.width,
        settings.dropout,
        settings.evidence,
    )


def network_input(settings: WsodSettings, batch: dict) -> tuple[Any, jax.Array]:
    """(network input: images or a tuple of cached maps, bool `[B, h, w]` cells that are not
    padding)."""
    sizes, stride = batch["size"], STRIDE[settings.backbone]
    if settings.backbone == "lite0":
        maps = tuple(batch[name] for name in MAPS)
        return maps, _inside(sizes / stride, *maps[0].shape[1:3])
    images = batch["image"]
    height, width = images.shape[1:3]
    images = jnp.where(_inside(sizes, height, width)[..., None], mini_input(images), 0.0)
    return images, _inside(sizes / stride, height // stride, width // stride)


def _inside(sizes: jax.Array, height: int, width: int) -> jax.Array:
    rows = jnp.arange(height)[None, :] < sizes[:, :1]
    columns = jnp.arange(width)[None, :] < sizes[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def tag_loss(model, settings, params, batch, rng) -> tuple[jax.Array, dict]:
    """Binary cross entropy of the image-level logits: the stand-in for ImageNet pre-training."""
    images, inside = network_input(settings, batch)
    logits = model.apply(
        {"params": params}, images, inside, method=lambda m, x, i: m.tag_logits(m.features(x), i)
    )
    return optax.sigmoid_binary_cross_entropy(logits, batch["tags"]).mean(), {}


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
        rngs={"dropout": rng},
    )
    one_image = functools.partial(mil_loss, method=settings.method)
    losses, terms = jax.vmap(one_image)(outputs, batch["boxes"], batch["valid"], batch["tags"])
    tags = optax.sigmoid_binary_cross_entropy(logits, batch["tags"]).mean()
    terms = {name: value.mean() for name, value in terms.items()} | {"tags": tags}
    return losses.mean() + settings.tag_weight * tags, terms


def _optimizer(settings: WsodSettings, rate: float, steps: int) -> optax.GradientTransformation:
    warmup = min(settings.warmup, steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(rate / 10, rate, warmup, steps, rate / 50)
    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.adamw(schedule, weight_decay=settings.weight_decay),
    )


def _init(model: MilDetector, samples: MilSamples, settings: WsodSettings, key: jax.Array) -> dict:
    """Fresh parameters, of the shapes that the first sample gives."""
    view = View(0, False)
    batch = {name: value[None] for name, value in samples.show(0, slice(None), view).items()}
    images, inside = network_input(settings, batch)
    return jax.jit(model.init)(key, images, inside, batch["boxes"], batch["prior"])["params"]


def _features(split, settings: WsodSettings, folder: Path, backbone) -> FeatureCache | None:
    """The filled cache of the frozen backbone's maps; None for a trained backbone."""
    if settings.backbone != "lite0":
        return None
    if backbone is None:
        problem, cure = "has no backbone weights", "give those of bridge.convert efficientnet_lite0"
        raise BadInput("the MIL detector", problem, cure)
    sums = [float(np.abs(leaf).sum(dtype=np.float64)) for leaf in jax.tree.leaves(backbone)]
    key = fingerprint([settings.backbone, settings.scales, sums])
    cache = FeatureCache(folder / "features" / split.split, key)
    weights = jax.device_put(backbone)

    @jax.jit
    def maps_of(weights, images, sizes):
        x = jnp.where(_inside(sizes, *images.shape[1:3])[..., None], lite0_input(images), 0.0)
        maps = Lite0(head=True).apply({"params": weights}, x)[1:]
        return {name: one.astype(jnp.float16) for name, one in zip(MAPS, maps, strict=True)}

    cache.fill(
        split,
        settings.scales,
        all_views(settings),
        lambda images, sizes: jax.device_get(maps_of(weights, images, sizes)),
        settings.test_batch,
    )
    return cache


def all_views(settings: WsodSettings) -> list[View]:
    """Every scale, plain and mirrored."""
    return [View(s, m) for s in range(len(settings.scales)) for m in (False, True)]


def detect_wsod(
    params: dict,
    split: TagSplit,
    proposals_root: str | Path,
    settings: WsodSettings,
    folder: str | Path,
    backbone: Any = None,
    clues_root: str | Path | None = None,
) -> list[dict]:
    """COCO results of every image of `split` (its tags are not read; stored clues may know them).

    Scores are the mean softmax of the refinement branches and boxes the mean decoded regression
    ("oicr": the proposals), both averaged over all views; scores times `clue_evidence` to the power
    of `clue_power`; then class-wise NMS and the best `max_detections` of an image, best first, the
    best one of every class among them.
    """
    samples = MilSamples(split, proposals_root, settings, clues_root)
    samples.features = _features(split, settings, Path(folder), backbone)
    model = build_model(settings, len(split.classes))
    params = jax.device_put(params)
    infer = jax.jit(functools.partial(infer_view, model, settings))
    select = jax.jit(
        jax.vmap(
            lambda boxes, scores, valid: multiclass_nms(
                boxes, scores, valid, 0.0, settings.nms, settings.max_detections, 200, True
            )
        )
    )
    results: dict[int, list[dict]] = {}
    views, size = all_views(settings), settings.test_batch
    with tqdm(total=len(split.records), desc=f"detect {split.split}", unit="images") as bar:
        for group in sorted(set(samples.groups)):
            members = [i for i, own in enumerate(samples.groups) if own == group]
            for start in range(0, len(members), size):
                chosen = members[start : start + size]
                found = _detect(infer, select, params, samples, chosen, views, size)
                for index, detections in zip(chosen, found, strict=True):
                    record = split.records[index]
                    results[record.image_id] = _as_coco(detections, record, split)
                bar.update(len(chosen))
    return [one for record in split.records for one in results[record.image_id]]


def infer_view(model, settings, params, batch) -> tuple[jax.Array, jax.Array]:
    """Scores `[B, N, C]` and boxes `[B, N, C, 4]` (input pixels) of one view."""
    images, inside = network_input(settings, batch)
    _, outputs = model.apply({"params": params}, images, inside, batch["boxes"], batch["prior"])
    scores = jax.nn.softmax(outputs.refine).mean(1)[..., 1:]
    boxes = jnp.broadcast_to(batch["boxes"][:, :, None], (*scores.shape, 4))
    if settings.method == "mist":
        boxes = decode(outputs.deltas.mean(1)[:, :, 1:], boxes)
    return scores, boxes


def _detect(infer, select, params, samples, chosen, views, size) -> list[tuple]:
    """(boxes, scores, labels, valid) of each chosen image, over all views."""
    padded = list(chosen) + [chosen[-1]] * (size - len(chosen))
    scores, boxes = 0.0, 0.0
    most = samples.settings.max_proposals
    for view in views:
        shown = [samples.show(i, slice(most), view) for i in padded]
        batch = {name: np.stack([one[name] for one in shown]) for name in shown[0]}
        view_scores, view_boxes = jax.device_get(infer(params, batch))
        records = [samples.split.records[i] for i in padded]
        restored = [
            clip(restore_boxes(b, r, one["size"], view.mirrored), r.width, r.height)
            for b, r, one in zip(view_boxes, records, shown, strict=True)
        ]
        scores, boxes = scores + view_scores / len(views), boxes + np.stack(restored) / len(views)
    scores = scores * np.stack([samples.clue_factors(i) for i in padded])
    found = jax.device_get(select(boxes, scores, batch["valid"]))
    return [tuple(part[i] for part in found) for i in range(len(chosen))]


def _as_coco(detections: tuple, record, split: TagSplit) -> list[dict]:
    boxes, scores, labels, valid = detections
    return [
        {
            "image_id": record.image_id,
            "file_name": record.file_name,
            "category_id": split.category_ids[int(label)],
            "bbox": [round(float(v), 2) for v in to_xywh(box)],
            "score": round(float(score), 6),
        }
        for box, score, label, ok in zip(boxes, scores, labels, valid, strict=True)
        if ok and box[2] - box[0] > 0 and box[3] - box[1] > 0
    ]
