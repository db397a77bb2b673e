"""What DINO's losses are given in their tests: mmdetection's numbers, and random outputs."""

import functools
from pathlib import Path

import numpy as np
import torch
from torch_dino_loss import terms_of

from weaksam_jax.detectors.dino.outputs import DenoisingTargets, TrainingOutputs

EXTRACT = Path(__file__).parents[1] / "detectors" / "dino" / "golden" / "losses.npz"
SHARED = Path(__file__).parents[3] / "shared" / "golden" / "golden_dino_transformer.npz"
FLOATS = TrainingOutputs._fields[:-1]


@functools.cache
def extract() -> dict[str, np.ndarray]:
    with np.load(EXTRACT) as file:
        return dict(file)


def golden(case: str) -> dict[str, np.ndarray]:
    """The arrays of a case, named without it."""
    return {k.removeprefix(f"{case}."): v for k, v in extract().items() if k.startswith(f"{case}.")}


def golden_batch(arrays: dict) -> dict[str, np.ndarray]:
    return {
        "boxes": arrays["gt.boxes_xyxy_px"],
        "labels": np.maximum(arrays["gt.labels"], 0).astype(np.int32),
        "valid": arrays["gt.valid"],
        "size": extract()["cfg.img_shapes_hw"].astype(np.float32),
    }


def golden_outputs(arrays: dict) -> TrainingOutputs:
    """The first slots are those of denoising, `[group][positive, negative][object]`; the padding
    among them counts as background."""
    slots, groups = int(arrays["dn.num_queries"]), int(arrays["dn.num_groups"])
    valid = arrays["gt.valid"]
    shape = (len(valid), groups, 2, valid.shape[1])
    positive = np.broadcast_to(valid[:, None, None], shape) & np.array([[True], [False]])
    index = np.broadcast_to(np.arange(shape[-1]), shape)
    index, positive = (one.reshape(len(valid), -1)[:, :slots] for one in (index, positive))
    cls, boxes = arrays["head.cls"], arrays["head.boxes"]
    return TrainingOutputs(
        cls[:, :, slots:],
        boxes[:, :, slots:],
        arrays["two_stage.topk_cls"],
        arrays["two_stage.topk_boxes"],
        cls[:, :, :slots],
        boxes[:, :, :slots],
        DenoisingTargets(index.astype(np.int32), positive, np.ones_like(positive)),
    )


def random_batch(rng, images=4, objects=5, classes=6) -> dict[str, np.ndarray]:
    """The last image has no objects."""
    size = rng.integers(40, 200, (images, 2)).astype(np.float32)
    scale = np.tile(size[:, ::-1], 2)[:, None]
    corner = rng.uniform(0, 0.6, (images, objects, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.1, 0.4, corner.shape)], -1) * scale
    valid = rng.random((images, objects)) < np.linspace(1, 0.4, images)[:, None]
    valid[-1] = False
    labels = rng.integers(0, classes, (images, objects)).astype(np.int32)
    return {"boxes": boxes.astype(np.float32), "labels": labels, "valid": valid, "size": size}


def random_outputs(rng, batch, *, layers=3, queries=24, slots=14, classes=6) -> TrainingOutputs:
    images = len(batch["valid"])

    def logits(*shape):
        return (2 * rng.standard_normal((*shape, classes)) - 1).astype(np.float32)

    def boxes(*shape):
        return rng.uniform(0.05, 0.95, (*shape, 4)).astype(np.float32)

    index = rng.integers(0, batch["valid"].shape[1], (images, slots)).astype(np.int32)
    real = np.take_along_axis(batch["valid"], index, axis=1)
    seen = rng.random((images, slots)) < 0.8
    targets = DenoisingTargets(index, real & seen & (rng.random(seen.shape) < 0.6), seen)
    shapes = ((layers, images, queries), (images, queries), (layers, images, slots))
    made = (make(*shape) for shape in shapes for make in (logits, boxes))
    return TrainingOutputs(*made, targets)


def in_torch(outputs: TrainingOutputs, batch: dict, drop: dict | None = None):
    """(terms, gradients of their sum by the six arrays) of the PyTorch form."""
    tensors = {name: torch.from_numpy(np.asarray(getattr(outputs, name))) for name in FLOATS}
    tensors = {name: one.clone().requires_grad_() for name, one in tensors.items()}
    terms = terms_of({**tensors, **outputs.denoising_targets._asdict()}, batch, drop)
    sum(terms.values()).backward()
    zero = {name: np.zeros(one.shape, np.float32) for name, one in tensors.items()}
    found = {name: one.grad for name, one in tensors.items() if one.grad is not None}
    gradients = {**zero, **{name: one.numpy() for name, one in found.items()}}
    return {name: value.item() for name, value in terms.items()}, gradients


def part_of(outputs: TrainingOutputs, batch: dict, images: slice):
    """The same of some images."""
    targets = DenoisingTargets(*(one[images] for one in outputs.denoising_targets))
    floats = {
        name: value[images] if name.startswith("encoder") else value[:, images]
        for name, value in zip(FLOATS, outputs, strict=False)
    }
    own = TrainingOutputs(**floats, denoising_targets=targets)
    return own, {name: value[images] for name, value in batch.items()}
