"""The programs of any detector, a training step and a detection, and what they are given.

`program_of` makes no array: parameters, state and batch are `jax.ShapeDtypeStruct`s placed on a
mesh, so a program can be compiled for devices that are not there (`experiments.bench.tpu`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from experiments.bench.entry import random_boxes, random_image
from weaksam_jax.data.scales import PaddedSize
from weaksam_jax.detectors import DETECTORS, Detector
from weaksam_jax.engine.mesh import over_images, replicated, sharded
from weaksam_jax.engine.step import Batch, Metrics, TrainState, make_train_step
from weaksam_jax.engine.train import frozen_loss
from weaksam_jax.settings import change

CLASSES = 20  # VOC's
TAGS = (3, 7, 14)  # of every image
OBJECTS = 16  # the padded number of pseudo boxes of an image
Work = Literal["train", "predict"]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
# What a batch holds beside `image` and `size`, by what a detector learns from: the shape behind the
# images' axis (n: proposals, c: classes) and the type.
LEARNT = {
    "tags": {"tags": (("c",), jnp.bool_)},
    "boxes": {
        "boxes": ((OBJECTS, 4), jnp.float32),
        "labels": ((OBJECTS,), jnp.int32),
        "valid": ((OBJECTS,), jnp.bool_),
    },
}
PROPOSED = {
    "boxes": (("n", 4), jnp.float32),
    "prior": (("n", "c"), jnp.float32),
    "valid": (("n",), jnp.bool_),
}


@dataclass(frozen=True)
class Case:
    """One program: detector (row of `DETECTORS`), recipe (one of its presets), what it does, padded
    size (height, width), proposals per image (detectors on proposals), precision, images per call
    (0: the recipe's), classes, and other values of the recipe by their dotted names."""

    detector: str
    recipe: str
    work: Work
    size: PaddedSize
    proposals: int
    precision: str
    images: int = 0
    classes: int = CLASSES
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """For `--only` and tables."""
        shape = f"{self.size[0]}x{self.size[1]}"
        shape += f" n={self.proposals}" if DETECTORS[self.detector].on_proposals else ""
        return f"{self.detector} {self.recipe} {self.work} {shape} {self.precision}"


@dataclass(frozen=True)
class Program:
    """trace: the function at its shapes; images: of one call, on `devices` devices."""

    trace: Callable[[], jax.stages.Traced]
    images: int
    devices: int

    def lower(self) -> jax.stages.Lowered:
        return self.trace().lower()


def detector_of(case: Case) -> Detector:
    """The recipe's detector at one padded size."""
    kind = DETECTORS[case.detector]
    values = {"model.precision": case.precision, "data.scales": ((case.size,),)}
    values |= {"test.tta_scales": ((case.size,),), "optim.init": "scratch"}
    if case.images:
        values |= {f"{part}.batch_size": case.images for part in ("optim", "test")}
    return kind(change(kind.presets[case.recipe](), values | dict(case.more)), case.classes)


def published(presets: Mapping[str, Any]) -> list[str]:
    """The names of a detector's recipes of the first data set that it has some for."""
    for data in ("voc07", "voc12", "coco14", "coco17"):
        if names := [name for name in presets if name.startswith(data)]:
            return names
    return []


def end_sizes(case: Case) -> list[PaddedSize]:
    """The smallest and the largest padded size of the recipe."""
    scales = DETECTORS[case.detector].presets[case.recipe]().data.scales
    sizes = sorted({size for scale in scales for size in scale}, key=lambda size: size[0] * size[1])
    return [sizes[0], sizes[-1]]


def program_of(case: Case, mesh: Mesh) -> Program:
    """The program of a case over the mesh: a training step, or the detection of one view."""
    detector = detector_of(case)
    return {"train": _train, "predict": _predict}[case.work](detector, case, mesh)


def train_step(detector: Detector, mesh: Mesh) -> TrainStep:
    """A detector's compiled training step, as `train_detector` makes it."""
    micro = detector.config.optim.micro_batches
    return make_train_step(frozen_loss(detector), detector.optimizer(), mesh, micro_batches=micro)


def _train(detector: Detector, case: Case, mesh: Mesh) -> Program:
    optim, tx, step = detector.config.optim, detector.optimizer(), train_step(detector, mesh)

    def start(key):
        params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), detector.shapes())
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), rng=key)

    state = jax.eval_shape(start, jax.eval_shape(lambda: jax.random.key(0)))
    batch = batch_shapes(detector, case, optim.batch_size, learning=True)
    placed = _placed(state, replicated(mesh)), _placed(batch, sharded(mesh))
    return Program(lambda: step.trace(*placed), optim.batch_size, mesh.size)


def _predict(detector: Detector, case: Case, mesh: Mesh) -> Program:
    images, run = detector.config.test.batch_size, over_images(detector.predict, mesh)
    images += -images % mesh.size  # as `weaksam_jax.engine.predict.detect_images` does
    batch = batch_shapes(detector, case, images, learning=False)
    placed = _placed(detector.shapes(), replicated(mesh)), _placed(batch, sharded(mesh))
    return Program(lambda: run.trace(*placed), images, mesh.size)


def planned_bytes(plan: Any) -> int:
    """Memory that the compiler has planned (`Compiled.memory_analysis`): results that lie where
    arguments lay count once."""
    results = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return plan.argument_size_in_bytes + plan.temp_size_in_bytes + results


def batch_shapes(detector: Detector, case: Case, images: int, learning: bool) -> dict[str, Any]:
    """The arrays of a batch (`weaksam_jax.detectors.Detector`), by name."""
    fields = {"image": ((*case.size, 3), jnp.uint8), "size": ((2,), jnp.float32)}
    fields |= PROPOSED if detector.on_proposals else {}
    fields |= LEARNT[detector.learns_from] if learning else {}
    sides = {"n": case.proposals, "c": case.classes}

    def whole(dims: tuple) -> tuple[int, ...]:
        return (images, *(sides.get(side, side) for side in dims))

    return {name: jax.ShapeDtypeStruct(whole(d), kind) for name, (d, kind) in fields.items()}


def _placed(tree: Any, sharding: Sharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def filled(shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    """Seeded arrays of the shapes of a batch: pictures of rectangles, boxes of mixed sizes, all of
    them valid, three tags."""
    count, height, width = shapes["image"].shape[:3]
    rng = np.random.default_rng(0)

    def boxes(number: int) -> np.ndarray:
        return random_boxes(rng, number, width, height=height)

    fill = {
        "image": lambda x: np.stack([random_image(i, height, width) for i in range(count)]),
        "size": lambda x: np.tile(np.float32([height, width]), (count, 1)),
        "boxes": lambda x: np.stack([boxes(x.shape[1]) for _ in range(count)]),
        "prior": lambda x: np.zeros(x.shape, np.float32),
        "valid": lambda x: np.ones(x.shape, bool),
        "tags": lambda x: np.tile(np.isin(np.arange(x.shape[1]), TAGS), (count, 1)),
        "labels": lambda x: rng.integers(0, CLASSES, x.shape).astype(np.int32),
    }
    return {name: fill[name](x) for name, x in shapes.items()}
