"""Our programs on the GPU card: training steps and detections of every detector.

Programs are compiled from shapes alone, several at a time, before any of them is timed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax

from experiments.bench.gpu_sizes import (
    Job,
    Jobs,
    Sizes,
    cases,
    fewer,
    halved,
    images_of,
    row,
    timed,
)
from experiments.bench.programs import (
    Case,
    batch_shapes,
    detector_of,
    filled,
    planned_bytes,
    program_of,
)
from weaksam_jax.detectors import Detector
from weaksam_jax.engine.mesh import data_mesh, put_batch, replicated
from weaksam_jax.engine.step import Params, TrainState, create_state

# What `lowering_platforms` calls a backend.
PLATFORMS = {"gpu": "cuda"}


def train_jobs(sizes: Sizes) -> Jobs:
    """Training steps on one device."""
    return _jobs(sizes, "train", train)


def predict_jobs(sizes: Sizes) -> Jobs:
    """Detections of one view."""
    return _jobs(sizes, "predict", predict)


def _jobs(sizes: Sizes, work: str, run: Callable) -> Jobs:
    return {
        f"{case.name} ours": Job(
            partial(measure, case, run, sizes.repeats),
            prepare=partial(prepare, case),
            together=case.precision,
            kind=case.detector,
        )
        for case in cases(sizes, work)
    }


@dataclass(frozen=True)
class Ready:
    """A compiled program, the case that it is of, and what is known of it: {"memory_gib": planned
    by the compiler, "tflop"}."""

    case: Case
    compiled: Any
    known: dict[str, Any]


def prepare(case: Case) -> Ready:
    """Compiles a case, with fewer images where the device has no room for what is planned."""
    compiled = program_of(case, one_device()).lower().compile()
    planned = planned_bytes(compiled.memory_analysis())
    if planned > room() and images_of(case) > 1:
        return prepare(halved(case))
    if case.work == "train":
        start_of(replace(case, precision="float32", images=0))
    return Ready(case, compiled, {"memory_gib": round(planned / 2**30, 3)} | flops_of(case))


def one_device() -> jax.sharding.Mesh:
    return data_mesh(jax.devices()[:1])


def room() -> float:
    """Bytes that a program may have on the device."""
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit", float("inf"))


def flops_of(case: Case) -> dict[str, Any]:
    """{"tflop": of the program as it is written, loops once}; {"no_tflop": why} if unknown."""
    platform = PLATFORMS.get(jax.default_backend(), jax.default_backend())
    try:
        return {"tflop": _tflop(replace(case, precision="float32"), platform)}
    except Exception as error:  # of any kind: what a call takes is measured all the same
        return {"no_tflop": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


@cache
def _tflop(case: Case, platform: str) -> float:
    """Of the program as `platform` is given it, counted by the CPU's client: that of a plugin, as
    CUDA's is, has no analysis of a program that is not compiled."""
    traced = program_of(case, data_mesh(jax.devices("cpu")[:1])).trace()
    cost = traced.lower(lowering_platforms=(platform,)).cost_analysis()
    return round(cost["flops"] / 1e12, 6)


def measure(case: Case, run: Callable, repeats: int, ready: Ready) -> dict[str, Any]:
    """A row: what is ready, or half the images as long as there is no room for them."""
    while True:
        try:
            found = run(ready, repeats)
            break
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or images_of(ready.case) == 1:
                raise
        # Behind the handler: the error keeps the arrays of the call that failed.
        ready = prepare(halved(ready.case))
    return row(ready.case, "ours") | ready.known | fewer(ready.case, case) | found


def train(ready: Ready, repeats: int) -> dict[str, Any]:
    """The training step of a case."""
    case, mesh = ready.case, one_device()
    detector = detector_of(case)
    batch = put_batch(filled(batch_shapes(detector, case, images_of(case), learning=True)), mesh)
    start = start_of(replace(case, precision="float32", images=0))
    state, losses = [jax.device_put(start, replicated(mesh), may_alias=False)], []

    def step() -> jax.Array:
        state[0], metrics = ready.compiled(state[0], batch)
        return metrics["loss"]

    found = timed(step, lambda loss: losses.append(float(loss)), repeats)
    return found | {"loss": round(losses[-1], 4)}


def predict(ready: Ready, repeats: int) -> dict[str, Any]:
    """The detection of a case."""
    case, mesh = ready.case, one_device()
    detector = detector_of(case)
    batch = put_batch(filled(batch_shapes(detector, case, images_of(case), learning=False)), mesh)
    params = jax.device_put(params_of(detector, case), replicated(mesh))
    return timed(lambda: ready.compiled(params, batch), jax.block_until_ready, repeats)


@cache
def start_of(case: Case) -> TrainState:
    """The state that training starts from, on the CPU, made once for all precisions of a recipe."""
    detector, mesh = detector_of(case), data_mesh(jax.devices("cpu")[:1])
    params, tx = params_of(detector, case), detector.optimizer()
    return create_state(params, tx, jax.random.key(0), mesh=mesh)


def params_of(detector: Detector, case: Case) -> Params:
    """Fresh parameters, made once for all precisions of a recipe."""
    return _params(type(detector), case.recipe, case.detector)


@cache
def _params(kind: type, recipe: str, name: str) -> Params:
    small = Case(name, recipe, "train", size=(64, 64), proposals=4, precision="float32", images=1)
    detector = detector_of(small)
    batch = filled(batch_shapes(detector, small, 1, learning=True))
    with jax.default_device(jax.devices("cpu")[0]):  # the GPU is for what is timed
        return jax.device_get(detector.init(jax.random.key(0), batch))
