"""The whole MIL training step at the paper's size: seconds, peak memory, how both grow.

    python -m experiments.bench.mil                        # growth with proposals and canvas
    python -m experiments.bench.mil --forms ours --dtype bfloat16 --batch 8 --peak-tflops 989

The step is that of the VOC07 MIST recipe (`weaksam_jax.detectors.mil.recipes`): VGG16 with fc6 and fc7 of
4096, RoIPool, MIST mining, Adam with L2; random weights, dropout off so that the losses of both
forms agree. The other form is `experiments.bench.torch_mil_step`, one image. Every measurement is a
process of its own, so that the peak memory is its own: a first step, which compiles, and the best
of the next ones. On a GPU the table also has the hours of the paper's schedules.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from weaksam_jax.cli import entry_point
from weaksam_jax.detectors.mil import recipes
from weaksam_jax.files import write_json

CLASSES, TAGS, RATE = 20, (3, 7, 14), 1e-5
Form = Literal["ours", "torch"]


@dataclass(frozen=True)
class BenchMil:
    """Measures the step of one form, or the growth of both."""

    forms: tuple[Form, ...] = ("ours", "torch")
    """Our step, and the one in plain PyTorch."""
    proposals: tuple[int, ...] = (213, 512, 1024, 2001)
    """At the first canvas."""
    canvases: tuple[tuple[int, int], ...] = ((480, 640), (688, 920), (1000, 1336))
    """(height, width); all but the first with the first number of proposals."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of our convolutions and fully connected layers."""
    precision: Literal["tensorfloat32", "float32"] = "tensorfloat32"
    """Of our float32 products on a GPU (on a CPU both are float32)."""
    batch: int = 1
    """Images a step of ours (the other form has one)."""
    width: int = 4096
    """Of fc6 and fc7."""
    repeats: int = 2
    """Timed steps, after the first."""
    peak_tflops: float | None = None
    """The device's peak: the table then has our share of it (counted by XLA)."""
    json: Path = Path("runs/bench_mil.json")
    """Where the table is written as JSON."""


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


def measure(form: Form, proposals: int, canvas: tuple[int, int], weights: Path, **more) -> Measured:
    """Runs one form in a process of its own."""
    job = {"form": form, "proposals": proposals, "canvas": canvas, "weights": str(weights), **more}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.bench.mil", "--job", json.dumps(job)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def inputs(proposals: int, canvas: tuple[int, int], batch: int) -> dict[str, np.ndarray]:
    """A seeded batch as `MilSamples` would give it."""
    from experiments.bench.cases import random_boxes
    from experiments.bench.sam import random_image

    boxes = [random_boxes(np.random.default_rng(i), proposals, *canvas[::-1]) for i in range(batch)]
    return {
        "image": np.stack([random_image(i, *canvas) for i in range(batch)]),
        "size": np.tile(np.asarray(canvas, np.float32), (batch, 1)),
        "boxes": np.stack(boxes),
        "prior": np.zeros((batch, proposals, CLASSES), np.float32),
        "valid": np.ones((batch, proposals), bool),
        "tags": np.tile(np.isin(np.arange(CLASSES), TAGS), (batch, 1)),
    }


def settings_of(job: dict):
    """The recipe at the size of a job: its dtype, width, canvas, proposals and batch."""
    return replace(
        recipes.voc07("mist"),
        width=job["width"],
        dropout=0.0,
        dtype=job["dtype"],
        scales=((tuple(job["canvas"]),),),
        max_proposals=job["proposals"],
        batch=job["batch"],
        warmup=0,
        init="scratch",
    )


def our_step(job: dict) -> tuple[Callable[[], float], dict]:
    """(a step that returns its loss, the fields of `Measured` that its program knows)."""
    import jax

    from weaksam_jax.detectors.mil.network import build_model
    from weaksam_jax.detectors.mil.optimizer import make_optimizer
    from weaksam_jax.detectors.mil.train import detector_loss
    from weaksam_jax.engine.checkpoint import load_params
    from weaksam_jax.engine.mesh import data_mesh, put_batch
    from weaksam_jax.engine.step import create_state, make_train_step

    settings = settings_of(job)
    model, mesh = build_model(settings, CLASSES), data_mesh()
    tx = make_optimizer(settings, RATE, settings.steps)
    state = [create_state(load_params(job["weights"]), tx, jax.random.key(0), mesh)]
    batch = put_batch(inputs(job["proposals"], tuple(job["canvas"]), job["batch"]), mesh)
    loss_fn = lambda *args: detector_loss(model, settings, *args)  # noqa: E731
    with jax.default_matmul_precision(job["precision"]):
        compiled = make_train_step(loss_fn, tx, mesh).lower(state[0], batch).compile()
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
    batch = inputs(job["proposals"], tuple(job["canvas"]), 1)
    mean = np.asarray([102.9801, 115.9465, 122.7717], np.float32)
    image = torch.from_numpy(batch["image"][..., ::-1] - mean).permute(0, 3, 1, 2).contiguous()
    boxes, tags = torch.from_numpy(batch["boxes"][0]), torch.from_numpy(batch["tags"][0])
    adam = make_adam(state, RATE)

    def step() -> float:
        adam.zero_grad()
        loss = mist_loss(state, image, boxes, tags)
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Measured(min(seconds), round(peak), losses[0], losses[1], **known)


def write_weights(path: Path, width: int) -> Path:
    """Seeded fresh weights of the recipe's network, once for both forms."""
    import jax

    from weaksam_jax.detectors.mil.network import build_model, network_input
    from weaksam_jax.engine.checkpoint import save_params

    job = {"dtype": "float32", "width": width, "canvas": (64, 64), "proposals": 8, "batch": 1}
    settings, batch = settings_of(job), inputs(8, (64, 64), 1)
    start = (*network_input(settings, batch), batch["boxes"], batch["prior"])
    params = jax.jit(build_model(settings, CLASSES).init)(jax.random.key(0), *start)["params"]
    save_params(path, params)
    return path


def step_case(proposals: int, canvas: tuple[int, int] = (480, 640)) -> Callable[[], tuple]:
    """An entry of `experiments.bench`: the whole step of one image."""

    def case() -> tuple:
        folder = tempfile.TemporaryDirectory()
        weights = write_weights(Path(folder.name) / "weights.safetensors", BenchMil.width)
        more = {"dtype": "float32", "width": BenchMil.width, "batch": 1, "repeats": 2}
        more |= {"precision": "float32"}  # as the other form

        def agree(ours: Measured, other: Measured) -> str:
            folder.cleanup()
            return (
                f"losses {ours.loss:.5f}, {ours.after_loss:.5f} and {other.loss:.5f}, "
                f"{other.after_loss:.5f}; peak memory {ours.peak_mb:.0f} and {other.peak_mb:.0f} "
                f"MB, XLA's plan of ours {ours.program_mb} MB"
            )

        what = f"MIST step, VGG16, one image of {canvas[0]}x{canvas[1]}, {proposals} proposals"
        forms = [
            lambda f=f: measure(f, proposals, canvas, weights, **more) for f in ("ours", "torch")
        ]
        return what, forms[0], "plain PyTorch", forms[1], agree

    return case


def grow(options: BenchMil) -> list[dict]:
    """All forms at all sizes, one row each."""
    sizes = [(n, options.canvases[0]) for n in options.proposals]
    sizes += [(options.proposals[0], canvas) for canvas in options.canvases[1:]]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(Path(folder) / "weights.safetensors", options.width)
        for proposals, canvas in sizes:
            for form in options.forms:
                more = {"dtype": options.dtype, "width": options.width}
                more |= {"batch": options.batch, "repeats": options.repeats}
                more |= {"precision": options.precision}
                found = measure(form, proposals, canvas, weights, **more)
                images = options.batch if form == "ours" else 1
                row = {"form": form, "proposals": proposals, "canvas": list(canvas)}
                row |= {"seconds": round(found.seconds, 3), "peak_mb": found.peak_mb}
                row |= {"program_mb": found.program_mb}
                row |= {"losses": [round(found.loss, 5), round(found.after_loss, 5)]}
                row |= {"images_per_s": round(images / found.seconds, 3)}
                if found.flops and options.peak_tflops:
                    share = found.flops / found.seconds / options.peak_tflops / 1e12
                    row["share_of_peak"] = round(share, 4)
                if found.device != "cpu":
                    row["schedule_hours"] = schedule_hours(images / found.seconds)
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def schedule_hours(images_per_s: float) -> dict[str, float]:
    """Hours of the recipes of MIST at that speed (of one canvas: an estimate)."""
    made = {name: recipe("mist") for name, recipe in vars(recipes).items() if name in DATA}
    return {name: round(s.steps * s.batch / images_per_s / 3600, 2) for name, s in made.items()}


DATA = ("voc07", "voc12", "coco14")


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["--job"]:
        print(json.dumps(vars(work(json.loads(argv[1])))))
        return
    options = tyro.cli(
        BenchMil, args=argv, description=__doc__, prog="python -m experiments.bench.mil"
    )
    write_json(options.json, grow(options), indent=1)


if __name__ == "__main__":
    sys.exit(entry_point(main))
