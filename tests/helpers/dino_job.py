"""The real training of a small DINO on random scenes, as a program: `python dino_job.py JOB.json`.

The job: {"runs": {name: {"devices": how many (null: all), "stops": steps after which it is begun
anew}}, "out"}. Process 0 writes `<out>/<name>.npz`: losses and dropped shares of every step, the
final parameters, and how often the step was compiled. Denoising and query drop are on.
"""

import functools
import json
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from small_dino import small

from weaksam_jax.cli import entry_point
from weaksam_jax.detectors.dino.loss_config import QueryDropConfig
from weaksam_jax.engine import distributed
from weaksam_jax.engine import train as training
from weaksam_jax.engine.distributed import run_leader_first
from weaksam_jax.engine.mesh import data_mesh
from weaksam_jax.engine.step import count_compilations, make_train_step
from weaksam_jax.engine.weights import flatten

IMAGES, OBJECTS, PADDED = 16, 8, (64, 64)
# SGD, because Adam makes steps of gradients that are rounding errors alone.
OPTIM = {"optimizer": "sgd", "lr": 0.05, "clip": 1.0, "warmup": 1, "steps": 4, "batch_size": 8}
DETECTOR = small(
    model={"encoder_layers": 1, "decoder_layers": 1, "strides": (16, 32)},
    loss={"drop": QueryDropConfig(percentile=70.0, denoising=True)},
    optim={**OPTIM, "checkpoint_every": 2},
)


class Scenes:
    """Noise with 0 to 5 objects, of which the sample's own generator moves the boxes."""

    buckets = (0,) * IMAGES

    def draw(self, bucket, rng):
        return PADDED

    def __call__(self, index, padded, rng):
        scene = np.random.default_rng(index)
        corner = scene.uniform(0, 24, (OBJECTS, 2)) + rng.uniform(0, 2, 2)
        boxes = np.concatenate([corner, corner + scene.uniform(8, 30, (OBJECTS, 2))], -1)
        return {
            "image": scene.integers(0, 256, (*padded, 3)).astype(np.uint8),
            "size": scene.integers(56, 65, 2).astype(np.float32),
            "boxes": boxes.astype(np.float32),
            "labels": scene.integers(0, 2, OBJECTS).astype(np.int32),
            "valid": np.arange(OBJECTS) < index % 6,
            "image_id": np.int64(index),
        }

    def example(self):
        sample = self(0, PADDED, np.random.default_rng(0))
        return {name: np.asarray(value)[None] for name, value in sample.items()}


@functools.cache
def start():
    """The parameters at the start, on the host."""
    return jax.device_get(DETECTOR.init(jax.random.key(0), Scenes().example()))


def leader_first(*arguments, **options):
    """The step, which process 0 compiles before the others find it on disk: the CPU's collectives
    wait 30 seconds for a process that is still compiling."""
    step, compiled = make_train_step(*arguments, **options), []

    def call(state, batch):
        if not compiled:
            run_leader_first(lambda: compiled.append(step.lower(state, batch).compile()))
        return step(state, batch)

    return step if distributed.process()[1] == 1 else call


def train(folder: Path, mesh, stops=()) -> dict:
    """{"loss", "dropped": of every step, "compiled": programs, name of a parameter: its value}."""
    every_step = functools.partial(training.train, log_every=1)
    given = {"mesh": mesh, "seed": 3, "params": start(), "key": jax.random.key(1)}
    changes = {"train": every_step, "make_train_step": leader_first}
    with mock.patch.multiple(training, **changes), count_compilations() as compiled:
        for until in (*stops, None):
            params = training.train_detector(DETECTOR, Scenes(), folder, **given, until=until)
    lines = [json.loads(one) for one in (folder.parent / "log.jsonl").read_text().splitlines()]
    found = {"loss": [line["loss"] for line in lines], "compiled": len(compiled)}
    found["dropped"] = [
        [line[f"dropped_{kind}things"] for kind in ("", "encoder_", "denoising_")] for line in lines
    ]
    return {name: np.asarray(value) for name, value in found.items()} | flatten(params)


def main(argv) -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    distributed.start()
    for name, run in job["runs"].items():
        mesh = data_mesh(jax.devices()[: run.get("devices")])
        result = train(Path(job["out"]) / name / "dino", mesh, run.get("stops", ()))
        if distributed.is_leader():
            np.savez(Path(job["out"]) / f"{name}.npz", **result)


if __name__ == "__main__":
    sys.exit(entry_point(main))
