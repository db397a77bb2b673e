"""The whole MIL training step at the paper's size: seconds, peak memory, how both grow.

    python -m experiments.bench mil                        # growth with proposals and image size
    python -m experiments.bench mil --forms ours --precision bfloat16 --batch 8 --peak-tflops 989

Every measurement (`experiments.bench.mil_step`) is a process of its own, so that the peak memory is
its own: a first step, which compiles, and the best of the next ones. On a GPU the table also has
the hours of the paper's schedules.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.bench.entry import Case, Entry
from experiments.bench.mil_step import WIDTH, Form, Measured, measure, write_weights
from weaksam_jax.detectors.mil import recipes
from weaksam_jax.engine.precision import Precision
from weaksam_jax.files import write_json
from weaksam_jax.flags import parse
from weaksam_jax.outputs import OutFile
from weaksam_jax.ranges import Batch, Count, Filled, Positive, Side, Width

DATA = ("voc07", "voc12", "coco14")


@dataclass(frozen=True)
class BenchMil:
    """Measures the step of one form, or the growth of both."""

    forms: tuple[Form, ...] = ("ours", "torch")
    """Our step, and the one in plain PyTorch."""
    proposals: Filled[Count] = (213, 512, 1024, 2001)
    """At the first size."""
    sizes: Filled[tuple[Side, Side]] = ((480, 640), (688, 920), (1000, 1336))
    """Padded (height, width); all but the first with the first number of proposals."""
    precision: Precision = "float32"
    """Of our convolutions and fully connected layers."""
    batch: Batch = 1
    """Images per step of ours (the other form has one)."""
    width: Width = WIDTH
    """Of fc6 and fc7."""
    repeats: Count = 2
    """Timed steps, after the first."""
    peak_tflops: Positive | None = None
    """The device's peak: the table then has our share of it (counted by XLA)."""
    json: OutFile = Path("runs/bench_mil.json")
    """Where the table is written as JSON."""


def step_case(proposals: int, size: tuple[int, int] = (480, 640)) -> Case:
    """An entry of `experiments.bench`: the whole step of one image."""

    def case() -> Entry:
        folder = tempfile.TemporaryDirectory()
        weights = write_weights(Path(folder.name) / "weights.safetensors", WIDTH)
        more = {"precision": "float32", "width": WIDTH, "batch": 1, "repeats": 2}
        ours, other = (
            lambda f=f: measure(f, proposals, size, weights=weights, **more)
            for f in ("ours", "torch")
        )

        def agree(ours: Measured, other: Measured) -> str:
            folder.cleanup()
            return _agreement(ours, other)

        what = f"MIST step, VGG16, one image of {size[0]}x{size[1]}, {proposals} proposals"
        return Entry(what, ours, "plain PyTorch", other=other, agree=agree)

    return case


def _agreement(ours: Measured, other: Measured) -> str:
    return (
        f"losses {ours.loss:.5f}, {ours.after_loss:.5f} and {other.loss:.5f}, "
        f"{other.after_loss:.5f}; peak memory {ours.peak_mb:.0f} and {other.peak_mb:.0f} "
        f"MB, XLA's plan of ours {ours.program_mb} MB"
    )


def grow(options: BenchMil) -> list[dict]:
    """All forms at all sizes, one row each."""
    names = ("precision", "width", "batch", "repeats")
    more = {name: getattr(options, name) for name in names}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(Path(folder) / "weights.safetensors", options.width)
        for form, proposals, size in _measurements(options):
            found = measure(form, proposals, size, weights=weights, **more)
            place = {"form": form, "proposals": proposals, "size": list(size)}
            rows.append(place | _row(found, options.batch if form == "ours" else 1, options))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def _measurements(options: BenchMil) -> Iterator[tuple[Form, int, tuple[int, int]]]:
    places = [(count, options.sizes[0]) for count in options.proposals]
    places += [(options.proposals[0], size) for size in options.sizes[1:]]
    return ((form, *place) for place in places for form in options.forms)


def _row(found: Measured, images: int, options: BenchMil) -> dict:
    """The figures of one measurement of a step of that many images."""
    speed = images / found.seconds
    row = {"seconds": round(found.seconds, 3), "peak_mb": found.peak_mb}
    row |= {"program_mb": found.program_mb}
    row |= {"losses": [round(found.loss, 5), round(found.after_loss, 5)]}
    row |= {"images_per_s": round(speed, 3)}
    if found.flops and options.peak_tflops:
        share = found.flops / found.seconds / options.peak_tflops / 1e12
        row["share_of_peak"] = round(share, 4)
    if found.device != "cpu":
        row["schedule_hours"] = schedule_hours(speed)
    return row


def schedule_hours(images_per_s: float) -> dict[str, float]:
    """Hours of the recipes of MIST at that speed (of one padded size: an estimate)."""
    optims = {name: getattr(recipes, name)("mist").optim for name in DATA}
    images = {name: optim.steps * optim.batch_size for name, optim in optims.items()}
    return {name: round(count / images_per_s / 3600, 2) for name, count in images.items()}


def main(argv: Sequence[str]) -> None:
    options = parse(BenchMil, argv, __doc__, name="bench mil")
    write_json(options.json, grow(options), indent=1)
