"""A point of `experiments.bench growth`, measured in a process of its own.

python -m experiments.bench.growth_worker '{"detector": "mil", "recipe": "mini", ...}'
"""

import json
import sys
from typing import Any

import jax

from experiments.bench.gpu_sizes import timed
from experiments.bench.mil_step import peak_mb
from experiments.bench.programs import (
    Case,
    batch_shapes,
    detector_of,
    filled,
    planned_bytes,
    train_step,
)
from weaksam_jax.engine.mesh import data_mesh, put_batch
from weaksam_jax.engine.step import create_state


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """The training step of a case on all devices: {"ms": median, "peak_mb": the most memory that
    the device held, on a CPU the process, "program_mb": XLA's plan of the state, the batch and what
    the step needs beside them, "loss", "device"}."""
    mesh, detector = data_mesh(), detector_of(case)
    batch = filled(batch_shapes(detector, case, case.images, learning=True))
    one = {name: value[:1] for name, value in batch.items()}
    tx = detector.optimizer()
    params = jax.device_get(detector.init(jax.random.key(0), one))
    state = [create_state(params, tx, jax.random.key(0), mesh=mesh)]
    batch = put_batch(batch, mesh)
    compiled = train_step(detector, mesh).lower(state[0], batch).compile()

    def step() -> jax.Array:
        state[0], metrics = compiled(state[0], batch)
        return metrics["loss"]

    found = {"ms": timed(step, float, repeats)["ms"], "loss": round(float(step()), 4)}
    plan = {"program_mb": round(planned_bytes(compiled.memory_analysis()) / 2**20)}
    return found | plan | {"peak_mb": most_mb(), "device": jax.devices()[0].device_kind}


def most_mb() -> int:
    """The most memory that the first device has held, as its allocator counts it; a CPU has none,
    there it is that of the process."""
    counted = jax.devices()[0].memory_stats() or {}
    held = counted.get("peak_bytes_in_use")
    return round(peak_mb() if held is None else held / 2**20)


def case_of(job: dict[str, Any]) -> Case:
    """The case that a job names."""
    more = tuple((name, value) for name, value in job.pop("more"))
    return Case(**{**job, "size": tuple(job["size"])}, work="train", precision="float32", more=more)


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    repeats = job.pop("repeats")
    print(json.dumps(measure(case_of(job), repeats)))
