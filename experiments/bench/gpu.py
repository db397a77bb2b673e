"""The GPU card: what the GPU computes is right, and how fast it is, in a fixed time.

    python -m experiments.bench gpu                    # `make gpu-card`; at most 8 minutes
    python -m experiments.bench gpu --tiny             # the same path at the smallest sizes

Correctness first (operations, losses, steps and detections beside the CPU's), then milliseconds,
images per second, share of the peak and memory of every detector's training step and detection in
bfloat16, TF32 and float32, plain PyTorch doing the same work beside them, and SAM's encoding and
export of an image. Every part is a process of its own with a share of the time; what is not done
when it is over is dropped and named. Share of the peak: flops of our program as it is written,
loops once, in parts of what the card's data sheet says for the precision.

It needs no weights and no data; the packages are those of `experiments.bench.packages`, and
transformers for a Deformable DETR beside our DINO.
"""

import importlib.metadata
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.bench.gpu_card import Card, failed, write_card
from experiments.bench.gpu_worker import PARTS
from experiments.bench.written import beside
from weaksam_jax.errors import BadInput
from weaksam_jax.flags import parse
from weaksam_jax.outputs import OutFile
from weaksam_jax.ranges import Positive

VERSIONS = ("jax", "jaxlib", "flax", "optax", "torch", "torchvision", "transformers", "numpy")
GRACE = 3.0  # seconds in which a worker that is done says its last row
NO_CARD = "none (CPU)"


@dataclass(frozen=True)
class BenchGpu:
    """Checks and times everything on one GPU."""

    budget: Positive = 450.0
    """Seconds of all parts together."""
    only: str | None = None
    """Parts whose name contains this text."""
    tiny: bool = False
    """The smallest sizes, for a machine without GPU: the same path, figures that mean nothing."""
    out: OutFile = Path("runs/gpu_card.json")
    """Where the figures are written; a table, .md, lies beside it."""


def run(options: BenchGpu) -> Card:
    """All parts, one after the other; the card is written after every row."""
    chosen, said, start = _chosen(options), environment(), time.monotonic()
    beside(options.out, ".md")
    if said["card"] == NO_CARD and not options.tiny:
        raise BadInput("bench gpu", "nvidia-smi finds no GPU", "try its path with --tiny")
    card = Card(said, rows=[], dropped=[], seconds=0.0)
    scale, end = options.budget / sum(PARTS[name].seconds for name in chosen), start
    for name in chosen:
        end += scale * PARTS[name].seconds
        card = with_part(options, card, name, seconds=end - time.monotonic())
        card = replace(card, seconds=round(time.monotonic() - start, 1))
        write_card(options.out, card)
    return card


def with_part(options: BenchGpu, card: Card, name: str, seconds: float) -> Card:
    """The card with a part's rows, and with those that there was no time for."""
    missing = [name]
    for line in lines_of(name, options.tiny, seconds):
        if "planned" in line:
            missing = line["planned"]
            continue
        missing = [one for one in missing if one != line["name"]]
        over = line["name"] == name  # the part itself: what is missing is so not for want of time
        line |= {"lost": ", ".join(missing)} if over and missing else {}
        print(json.dumps(line), flush=True)
        card = replace(card, rows=[*card.rows, line])
        write_card(options.out, card)
        if over:
            return card
    return replace(card, dropped=[*card.dropped, *missing])


def _chosen(options: BenchGpu) -> list[str]:
    chosen = [name for name in PARTS if (options.only or "") in name]
    if not chosen:
        raise BadInput("--only", f"{options.only} names no part", f"choose from {', '.join(PARTS)}")
    return chosen


def lines_of(part: str, tiny: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """What the process of a part says; a row of the part's name if it ends by itself too early. It
    is ended after so many seconds."""
    if seconds <= 0:
        return
    job = json.dumps({"part": part, "tiny": tiny, "seconds": seconds})
    command = [sys.executable, "-m", "experiments.bench.gpu_worker", job]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    late = threading.Event()
    # It stops between two rows by itself; one that does not is ended.
    alarm = threading.Timer(seconds + GRACE, lambda: (late.set(), worker.kill()))
    alarm.start()
    try:
        yield from map(json.loads, (line for line in worker.stdout if line.startswith("{")))
        status = worker.wait()
        if status and not late.is_set():
            yield {"name": part, "part": part, "failed": f"its process ended with {ended(status)}"}
    finally:
        alarm.cancel()
        worker.kill()
        worker.wait()


def ended(status: int) -> str:
    """An exit status in words."""
    if status < 0:
        return signal.Signals(-status).name
    return f"exit status {status}"


def environment() -> dict[str, Any]:
    """Card, driver, versions and date."""
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        said = "; ".join(found.strip().splitlines()) or NO_CARD
    except (OSError, subprocess.CalledProcessError):
        said = NO_CARD
    python = ".".join(map(str, sys.version_info[:3]))
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return {"card": said, "python": python, "versions": versions(), "date": date}


def versions() -> dict[str, str]:
    """Of the packages that figures depend on, as far as they are there."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def main(argv: Sequence[str]) -> None:
    options = parse(BenchGpu, argv, __doc__, name="bench gpu")
    card = run(options)
    print(f"written to {options.out} and {beside(options.out, '.md')}", file=sys.stderr)
    if bad := [row["name"] for row in card.rows if failed(row)]:
        raise BadInput("bench gpu", f"{len(bad)} rows failed", f"see {', '.join(bad)[:300]}")
