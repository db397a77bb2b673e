"""What the GPU computes beside what this machine's CPU does, in the same process.

The CPU's results are held to independent forms by the tests; here the same programs, in float32,
run on both. Every row has the worst difference and what it may be.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.entry import random_boxes
from experiments.bench.gpu_ours import params_of
from experiments.bench.gpu_sizes import Job, Jobs, Sizes
from experiments.bench.programs import CLASSES, TAGS, Case, batch_shapes, detector_of, filled
from weaksam_jax.data.scales import PaddedSize
from weaksam_jax.detectors import DETECTORS
from weaksam_jax.detectors.mil.loss import MilOutputs, mil_loss, mine_mist
from weaksam_jax.engine.mesh import data_mesh
from weaksam_jax.engine.precision import products
from weaksam_jax.engine.step import keys_of
from weaksam_jax.engine.train import frozen_loss
from weaksam_jax.losses.drop import roi_drop
from weaksam_jax.losses.focal import focal_loss
from weaksam_jax.losses.query_drop import drop_queries
from weaksam_jax.ops.assignment import assign_all
from weaksam_jax.ops.deformable_attention import deformable_attention
from weaksam_jax.ops.nms import dense_nms, multiclass_nms, nms
from weaksam_jax.ops.roi import roi_align, roi_align_pyramid, roi_pool

COUNT, SIDE, STRIDE, CHANNELS = 200, 48, 8, 32  # boxes, cells of a map's side
LEVELS, HEADS, POINTS = ((SIDE, SIDE), (SIDE // 2, SIDE // 2)), 4, 4  # of deformable attention
# Sums in another order. A detector's step has discrete choices (NMS, samples, mining) on the way.
CLOSE, STEP = 1e-5, 1e-2


def jobs(sizes: Sizes) -> Jobs:
    """Operations, losses, and a training step and a detection of every detector."""
    arrays = _arrays()
    operations = _operations(arrays) | _operations_of_dino(arrays)
    parts = {name: partial(check, *one) for name, one in operations.items()}
    steps = {f"{kind} gradient": partial(check_step, kind, sizes.check) for kind in DETECTORS}
    detections = {
        f"{kind} detection": partial(check_detection, kind, sizes.check) for kind in DETECTORS
    }
    groups = {"operations": parts, "detections": detections, "gradients": steps}
    # Nothing is timed, so the whole check is made beside others.
    return {
        f"check {name}": Job(dict, prepare=one, together=group, kind=group)
        for group, jobs in groups.items()
        for name, one in jobs.items()
    }


def _arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, COUNT, SIDE * STRIDE, height=SIDE * STRIDE)
    return {
        "map": rng.standard_normal((SIDE, SIDE, CHANNELS), dtype=np.float32),
        "half": rng.standard_normal((SIDE // 2, SIDE // 2, CHANNELS), dtype=np.float32),
        "boxes": boxes,
        "level": (np.arange(COUNT) % 2).astype(np.int32),
        "scores": rng.random((COUNT, CLASSES), dtype=np.float32),
        "valid": np.arange(COUNT) < COUNT - 7,
        "tags": np.isin(np.arange(CLASSES), TAGS),
        "losses": rng.random((2, COUNT), dtype=np.float32),
        "outputs": MilOutputs(
            *(rng.standard_normal(shape, dtype=np.float32) for shape in _output_shapes())
        ),
    }


def _output_shapes() -> tuple[tuple[int, ...], ...]:
    wide = (COUNT, CLASSES + 1)
    return wide, wide, (3, *wide), (3, *wide, 4)


def _operations(a: dict[str, Any]) -> dict[str, tuple]:
    """(function, arguments, largest difference) of each check."""
    scale, limits = 1 / STRIDE, {"iou_threshold": 0.5, "max_output": 50}
    exact = partial(roi_pool, spatial_scale=scale, rounded=False)
    pyramid = partial(_pyramid, level=a["level"])
    one, chosen = a["scores"][:, 0], {"score_threshold": 0.3, **limits}
    mist = partial(mil_loss, boxes=a["boxes"], valid=a["valid"], image_labels=a["tags"])
    drop = partial(roi_drop, tau_cls=0.5, tau_reg=0.5)
    return {
        "RoIPool": (_with_gradient(partial(roi_pool, spatial_scale=scale)), _maps(a), CLOSE),
        "RoIPool, exact bins": (_with_gradient(exact), _maps(a), CLOSE),
        "RoIAlign": (_with_gradient(partial(roi_align, spatial_scale=scale)), _maps(a), CLOSE),
        "RoIAlign, pyramid": (
            _with_gradient(pyramid),
            ((a["map"], a["half"]), a["boxes"]),
            CLOSE,
        ),
        "NMS": (partial(nms, **limits), (a["boxes"], one, a["valid"]), 0.0),
        "dense NMS": (partial(dense_nms, **limits), (a["boxes"], one, a["valid"]), 0.0),
        "class-wise NMS": (
            partial(multiclass_nms, **chosen),
            (a["boxes"], a["scores"], a["valid"]),
            0.0,
        ),
        "MIST mining": (mine_mist, (a["boxes"], a["valid"], a["scores"], a["tags"]), CLOSE),
        "MIL loss": (jax.value_and_grad(mist, has_aux=True), (a["outputs"],), CLOSE),
        "RoI drop": (drop, _roi_losses(a), 0.0),
    }


def _operations_of_dino(a: dict[str, Any]) -> dict[str, tuple]:
    """As `_operations`."""
    attend, focal = jax.value_and_grad(_attended, argnums=(0, 1, 2)), jax.value_and_grad(_focal)
    logits, valid = a["scores"] - a["scores"].mean(), a["valid"][:CLASSES]
    drop = partial(drop_queries, background=True)
    return {
        "deformable attention": (attend, _attention_inputs(), CLOSE),
        "assignment": (assign_all, (a["scores"].T, valid), 0.0),
        "focal loss": (focal, (8 * logits, a["scores"] > 0.9), CLOSE),
        "query drop": (drop, _query_losses(a), 0.0),
    }


def _query_losses(a: dict[str, Any]) -> tuple[np.ndarray, ...]:
    losses = a["losses"]
    return losses, losses < losses[::-1], np.broadcast_to(a["valid"], losses.shape)


def _attention_inputs() -> tuple[np.ndarray, ...]:
    """Value `[T, H, D]`, locations `[Q, H, L, P, 2]` of which some lie outside, weights `[Q, H, L,
    P]`."""
    rng, cells = np.random.default_rng(1), sum(height * width for height, width in LEVELS)
    places = (COUNT, HEADS, len(LEVELS), POINTS)
    value = rng.standard_normal((cells, HEADS, CHANNELS // HEADS), dtype=np.float32)
    locations = rng.uniform(-0.1, 1.1, (*places, 2)).astype(np.float32)
    return value, locations, rng.random(places, dtype=np.float32)


def _attended(value, locations, weights):
    found = deformable_attention(value, LEVELS, locations, weights=weights)
    return jnp.mean(found**2)


def _focal(logits, labels):
    return focal_loss(logits, labels).sum()


def _maps(a: dict[str, Any]) -> tuple:
    return a["map"], a["boxes"]


def _roi_losses(a: dict[str, Any]) -> tuple:
    return a["scores"][:, 0], a["scores"][:, 1], a["level"] == 0, a["valid"]


def _pyramid(maps, boxes, level):
    return roi_align_pyramid(list(maps), (STRIDE, 2 * STRIDE), boxes, level=level)


def _with_gradient(pool: Callable) -> Callable:
    """(pooled, gradient of the maps for the sum of squares)."""

    def both(maps, boxes):
        pooled, back = jax.vjp(lambda maps: pool(maps, boxes), maps)
        return pooled, back(2 * pooled)

    return both


def check(function: Callable, args: tuple, limit: float) -> dict[str, Any]:
    """A row: the function on both devices."""
    worst = max(map(apart, *map(jax.tree.leaves, on_both(function, args))))
    return verdict(worst, limit)


def verdict(worst: float, limit: float) -> dict[str, Any]:
    return {"worst": float(f"{worst:.2g}"), "limit": limit, "passed": bool(worst <= limit)}


def on_both(function: Callable, args: tuple) -> list[Any]:
    """Results on the accelerator and on the CPU, float32 products."""
    found = []
    with products("float32"):
        for device in (jax.devices()[0], jax.devices("cpu")[0]):
            found.append(jax.device_get(jax.jit(function)(*jax.device_put(args, device))))
    return found


def apart(ours: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, in parts of the largest value; inf for what is not finite."""
    ours, other = np.asarray(ours, np.float64), np.asarray(other, np.float64)
    if not (np.isfinite(ours).all() and np.isfinite(other).all()):
        return np.inf
    return float(np.abs(ours - other).max(initial=0) / max(np.abs(other).max(initial=0), 1e-6))


def small_case(kind: str, work: str, size: PaddedSize) -> Case:
    return Case(kind, "mini", work, size=size, proposals=64, precision="float32", images=2)


def check_step(kind: str, size: PaddedSize) -> dict[str, Any]:
    """A row: loss and whole gradient of a detector's smallest recipe."""
    case = small_case(kind, "train", size)
    detector = detector_of(case)
    batch = filled(batch_shapes(detector, case, 2, learning=True))
    params, found = params_of(detector, case), []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        gradient = _gradient(frozen_loss(detector), device)
        (loss, _), grads = jax.device_get(gradient(params, batch, jax.random.key(0)))
        found.append([loss, *jax.tree.leaves(grads)])
    return verdict(max(apart(found[0][0], found[1][0]), _norm(found)), STEP)


def _norm(found: list) -> float:
    """Norm of the gradients' difference, in parts of the gradient's."""
    ours, other = (np.concatenate([np.ravel(x) for x in one[1:]]) for one in found)
    return float(np.linalg.norm(ours - other) / np.linalg.norm(other))


def _gradient(loss_fn: Callable, device: jax.Device) -> Callable:
    def of(params, batch, key):
        step, keys = jnp.zeros((), jnp.int32), keys_of(key, len(batch["image"]))
        return jax.value_and_grad(loss_fn, has_aux=True)(params, batch, keys, step)

    everywhere = jax.sharding.PartitionSpec()
    specs = {"in_specs": everywhere, "out_specs": everywhere, "check_vma": False}
    return jax.jit(jax.shard_map(of, mesh=data_mesh([device]), **specs))


def check_detection(kind: str, size: PaddedSize) -> dict[str, Any]:
    """A row: scores of the detections of a detector's smallest recipe."""
    case = small_case(kind, "predict", size)
    detector = detector_of(case)
    batch = filled(batch_shapes(detector, case, 2, learning=False))
    found = on_both(detector.predict, (params_of(detector, case), batch))
    ours, other = (np.where(one.valid, one.scores, 0.0) for one in found)
    return verdict(apart(ours, other), STEP)
