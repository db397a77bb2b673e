"""Our programs on the GPU card: training steps and detections of every detector."""

from functools import cache, partial
from typing import Any

import jax

from experiments.bench.gpu_sizes import Jobs, Sizes, cases, images_of, timed
from experiments.bench.programs import Case, batch_shapes, detector_of, filled, train_step
from weaksam_jax.detectors import Detector
from weaksam_jax.engine.mesh import data_mesh, put_batch
from weaksam_jax.engine.step import Params, create_state


def train_jobs(sizes: Sizes) -> Jobs:
    """Training steps on one device."""
    return _jobs(sizes, "train", train)


def predict_jobs(sizes: Sizes) -> Jobs:
    """Detections of one view."""
    return _jobs(sizes, "predict", predict)


def _jobs(sizes: Sizes, work: str, measure) -> Jobs:
    return {
        f"{case.name} ours": partial(measure, case, sizes.repeats) for case in cases(sizes, work)
    }


def train(case: Case, repeats: int) -> dict[str, Any]:
    """A row: the training step of a case."""
    mesh, detector, images = data_mesh(jax.devices()[:1]), detector_of(case), images_of(case)
    batch = put_batch(filled(batch_shapes(detector, case, images, learning=True)), mesh)
    params, tx = params_of(detector, case), detector.optimizer()
    state = [create_state(params, tx, jax.random.key(0), mesh=mesh)]
    compiled, known = compiled_of(train_step(detector, mesh), state[0], batch)

    def step() -> jax.Array:
        state[0], metrics = compiled(state[0], batch)
        return metrics["loss"]

    found = timed(step, float, repeats)
    return row(case, "ours") | known | found | {"loss": round(float(step()), 4)}


def predict(case: Case, repeats: int) -> dict[str, Any]:
    """A row: the detection of a case."""
    detector, images = detector_of(case), images_of(case)
    batch = jax.device_put(filled(batch_shapes(detector, case, images, learning=False)))
    params = jax.device_put(params_of(detector, case))
    compiled, known = compiled_of(jax.jit(detector.predict), params, batch)
    found = timed(lambda: compiled(params, batch), jax.block_until_ready, repeats)
    return row(case, "ours") | known | found


def row(case: Case, form: str) -> dict[str, Any]:
    """What every row of a case says."""
    same = {"detector": case.detector, "work": case.work, "precision": case.precision}
    return same | {"form": form, "size": list(case.size), "images": images_of(case)}


def compiled_of(function: Any, *args: Any) -> tuple[Any, dict[str, Any]]:
    """A compiled program, and what the compiler knows of it: flops (of the program as it was
    written, loops once) and the memory that it has planned."""
    lowered = function.lower(*args)
    compiled = lowered.compile()
    cost, plan = lowered.cost_analysis() or {}, compiled.memory_analysis()
    results = plan.output_size_in_bytes - plan.alias_size_in_bytes
    whole = plan.argument_size_in_bytes + plan.temp_size_in_bytes + results
    known = {"tflop": round(cost.get("flops", 0.0) / 1e12, 6)}
    return compiled, known | {"memory_gib": round(whole / 2**30, 3)}


def params_of(detector: Detector, case: Case) -> Params:
    """Fresh parameters, made once for all precisions of a recipe."""
    return _params(type(detector), case.recipe, case.detector)


@cache
def _params(kind: type, recipe: str, name: str) -> Params:
    small = Case(name, recipe, "train", size=(64, 64), proposals=4, precision="float32", images=1)
    detector = detector_of(small)
    batch = filled(batch_shapes(detector, small, 1, learning=True))
    return jax.device_get(detector.init(jax.random.key(0), batch))
