"""The whole MIL training step at the paper's size, timed in a process of its own.

The step is that of the VOC07 MIST recipe (`weaksam_jax.detectors.mil.recipes`): VGG16 with fc6 and
fc7 of 4096, RoIPool, MIST mining, Adam with L2; random weights, dropout off so that the losses of
both forms agree. The other form is `experiments.bench.torch_mil_step`, one image.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from experiments.bench.entry import random_boxes, random_image
from weaksam_jax.data.pixel_statistics import MIST_MEAN
from weaksam_jax.detectors.mil import MilDetector, recipes
from weaksam_jax.settings import change

CLASSES, TAGS, LR = 20, (3, 7, 14), 1e-5
WIDTH = 4096  # of fc6 and fc7
Form = Literal["ours", "torch"]


@dataclass(frozen=True)
class Measured:
    """One form at one size. seconds: of a step; peak_mb: of the process on the host; loss: of the
    first step, after_loss: of the second; flops: of a step, program_mb: XLA's plan of the device's
    memory (the state and the batch, and what the step needs beside them); None for PyTorch."""

    seconds: float
    peak_mb: float
    loss: float
    after_loss: float
    flops: float | None = None
    program_mb: float | None = None
    device: str = "cpu"


def measure(form: Form, proposals: int, size: tuple[int, int], weights: Path, **more) -> Measured:
    """Runs one form in a process of its own."""
    job = {"form": form, "proposals": proposals, "size": size, "weights": str(weights), **more}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.bench.mil_step", json.dumps(job)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def inputs(proposals: int, size: tuple[int, int], batch: int) -> dict[str, np.ndarray]:
    """A seeded batch as `MilSamples` would give it."""
    height, width = size
    boxes = [
        random_boxes(np.random.default_rng(i), proposals, width=width, height=height)
        for i in range(batch)
    ]
    return {
        "image": np.stack([random_image(i, *size) for i in range(batch)]),
        "size": np.tile(np.asarray(size, np.float32), (batch, 1)),
        "boxes": np.stack(boxes),
        "prior": np.zeros((batch, proposals, CLASSES), np.float32),
        "valid": np.ones((batch, proposals), bool),
        "tags": np.tile(np.isin(np.arange(CLASSES), TAGS), (batch, 1)),
    }


def detector_of(job: dict) -> MilDetector:
    """The recipe at the size of a job: its precision, width, padded size, proposals and batch."""
    values = {
        "model.fc_width": job["width"],
        "model.dropout": 0.0,
        "model.precision": job["precision"],
        "optim.batch_size": job["batch"],
        "optim.warmup": 0,
        "optim.init": "scratch",
        "data.scales": ((tuple(job["size"]),),),
        "data.max_proposals": job["proposals"],
    }
    return MilDetector(change(recipes.voc07("mist"), values), CLASSES)


def our_step(job: dict) -> tuple[Callable[[], float], dict]:
    """(a step that returns its loss, the fields of `Measured` that its program knows)."""
    import jax

    from weaksam_jax.engine.mesh import data_mesh, put_batch
    from weaksam_jax.engine.step import create_state, make_train_step
    from weaksam_jax.engine.train import frozen_loss
    from weaksam_jax.engine.weights import load_params

    detector, mesh = detector_of(job), data_mesh()
    tx = detector.optimizer()
    state = [create_state(load_params(job["weights"]), tx, jax.random.key(0), mesh=mesh)]
    batch = put_batch(inputs(job["proposals"], tuple(job["size"]), job["batch"]), mesh)
    step_fn = make_train_step(frozen_loss(detector), tx, mesh)
    compiled = step_fn.lower(state[0], batch).compile()
    known = {"flops": (compiled.cost_analysis() or {}).get("flops")}
    if plan := compiled.memory_analysis():
        beside = plan.output_size_in_bytes - plan.alias_size_in_bytes  # the state is donated
        program = plan.argument_size_in_bytes + beside + plan.temp_size_in_bytes
        known["program_mb"] = round(program / 2**20)

    def step() -> float:
        state[0], metrics = compiled(state[0], batch)
        return float(metrics["loss"])

    return step, {**known, "device": jax.devices()[0].platform}


def torch_step(job: dict) -> tuple[Callable[[], float], dict]:
    """As `our_step`, in plain PyTorch on a CPU."""
    import torch

    from bridge.weights.wetectron import wetectron_back
    from experiments.bench.torch_mil_step import make_adam, mist_loss
    from weaksam_jax.files import read_arrays

    state = wetectron_back("weights", read_arrays(job["weights"])[0])["model"]
    batch = inputs(job["proposals"], tuple(job["size"]), 1)
    mean = np.asarray(MIST_MEAN, np.float32)
    image = torch.from_numpy(batch["image"][..., ::-1] - mean).permute(0, 3, 1, 2).contiguous()
    boxes, tags = torch.from_numpy(batch["boxes"]), torch.from_numpy(batch["tags"])
    adam = make_adam(state, LR)

    def step() -> float:
        adam.zero_grad()
        loss = mist_loss(state, image, boxes, tags=tags)
        loss.backward()
        adam.step()
        return loss.item()

    return step, {}


def work(job: dict) -> Measured:
    """Builds one form in this process and times it."""
    step, known = {"ours": our_step, "torch": torch_step}[job["form"]](job)
    losses, seconds = [step()], []
    for _ in range(job["repeats"]):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    return Measured(min(seconds), round(peak_mb()), losses[0], after_loss=losses[1], **known)


def peak_mb() -> float:
    """The most memory that this process has held, in MB, as Linux or macOS count it.

    (On Linux getrusage would count the process that started this one as well.)
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes
    (line,) = [one for one in status.read_text().splitlines() if one.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def write_weights(path: Path, width: int) -> Path:
    """Seeded fresh weights of the recipe's network, once for both forms."""
    import jax

    from weaksam_jax.engine.weights import save_params

    job = {"precision": "float32", "width": width, "size": (64, 64), "proposals": 8, "batch": 1}
    save_params(path, detector_of(job).init(jax.random.key(0), inputs(8, (64, 64), 1)))
    return path


if __name__ == "__main__":
    print(json.dumps(vars(work(json.loads(sys.argv[1])))))
