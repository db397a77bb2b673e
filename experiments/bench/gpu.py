"""The GPU card: what the GPU computes is right, and how fast it is, in a fixed time.

    python -m experiments.bench gpu                    # `make gpu-card`; at most 8 minutes
    python -m experiments.bench gpu --tiny             # the same path at the smallest sizes

Correctness first (operations, losses, steps and detections beside the CPU's), then milliseconds,
images per second, share of the peak and memory of every detector's training step and detection in
bfloat16, TF32 and float32, plain PyTorch doing the same work beside them, and SAM's encoding and
export of an image. Every part is a process of its own with a share of the time; what is not done
when it is over is dropped and named. Share of the peak: flops of our program as it is written,
loops once, in parts of what the card's data sheet says for the precision.

It needs no weights and no data; of packages, beside jax with CUDA, torch and torchvision: flax,
optax, orbax, grain (array-record, portpicker), tyro (docstring-parser, typeguard), safetensors,
segment-anything, pycocotools, scikit-learn, timm, OpenCV.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.bench.gpu_card import Card, write_card
from experiments.bench.gpu_worker import PARTS, jobs_of
from weaksam_jax.errors import BadInput
from weaksam_jax.flags import parse
from weaksam_jax.ranges import Positive

VERSIONS = ("jax", "jaxlib", "flax", "optax", "torch", "torchvision", "numpy")


@dataclass(frozen=True)
class BenchGpu:
    """Checks and times everything on one GPU."""

    budget: Positive = 460.0
    """Seconds of all parts together."""
    only: str | None = None
    """Parts whose name contains this text."""
    tiny: bool = False
    """The smallest sizes, for a machine without GPU: the same path, figures that mean nothing."""
    out: Path = Path("runs/gpu_card")
    """Written as OUT.json and OUT.md."""


def run(options: BenchGpu) -> Card:
    """All parts, one after the other; the card is written after every row."""
    planned = {name: list(jobs_of(name, options.tiny)) for name in _chosen(options)}
    card, start = Card(environment(), rows=[], dropped=[], seconds=0.0), time.monotonic()
    scale, end = options.budget / sum(PARTS[name].seconds for name in planned), start
    for name, missing in planned.items():
        end += scale * PARTS[name].seconds
        for row in rows_of(name, options.tiny, end - time.monotonic()):
            print(json.dumps(row), flush=True)
            card.rows.append(row)
            missing.remove(row["name"])
            write_card(options.out, card)
        card.dropped.extend(missing)
    card = Card(**{**vars(card), "seconds": round(time.monotonic() - start, 1)})
    write_card(options.out, card)
    return card


def _chosen(options: BenchGpu) -> list[str]:
    chosen = [name for name in PARTS if (options.only or "") in name]
    if not chosen:
        raise BadInput("--only", f"{options.only} names no part", f"choose from {', '.join(PARTS)}")
    return chosen


def rows_of(part: str, tiny: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """The rows of a part, as its process says them; it is ended after so many seconds."""
    if seconds <= 0:
        return
    job = json.dumps({"part": part, "tiny": tiny, "seconds": seconds})
    command = [sys.executable, "-m", "experiments.bench.gpu_worker", job]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    # It stops between two rows by itself; one that does not is ended.
    alarm = threading.Timer(seconds, worker.kill)
    alarm.start()
    try:
        for line in worker.stdout:
            if line.startswith("{"):
                yield json.loads(line)
    finally:
        alarm.cancel()
        worker.kill()
        worker.wait()


def environment() -> dict[str, Any]:
    """Card, driver, versions and date."""
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        said = "none (CPU)"
    versions = {name: metadata.version(name) for name in VERSIONS}
    python = ".".join(map(str, sys.version_info[:3]))
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return {"card": said, "python": python, "versions": versions, "date": date}


def main(argv: Sequence[str]) -> None:
    options = parse(BenchGpu, argv, __doc__, name="bench gpu")
    card = run(options)
    print(f"written to {options.out}.json and {options.out}.md", file=sys.stderr)
    if failed := [row["name"] for row in card.rows if not row.get("passed", "failed" not in row)]:
        raise BadInput("bench gpu", f"{len(failed)} rows failed", f"see {', '.join(failed)[:300]}")
