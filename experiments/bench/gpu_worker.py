"""A part of the GPU card in a process of its own: a line of JSON for every row.

python -m experiments.bench.gpu_worker '{"part": "checks", "tiny": true, "seconds": 60}'
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from importlib import import_module

from experiments.bench.gpu_sizes import CARD, TINY, Jobs


@dataclass(frozen=True)
class Part:
    """seconds: its share of the time; module and function: what gives its jobs."""

    seconds: float
    module: str
    function: str = "jobs"


PARTS = {
    "checks": Part(70, "gpu_checks"),
    "training": Part(150, "gpu_ours", "train_jobs"),
    "PyTorch": Part(70, "gpu_torch"),
    "detection": Part(80, "gpu_ours", "predict_jobs"),
    "SAM": Part(100, "gpu_sam"),
}


def jobs_of(part: str, tiny: bool) -> Jobs:
    """The rows of a part by name, and the work behind each."""
    chosen = PARTS[part]
    module = import_module(f"experiments.bench.{chosen.module}")
    return getattr(module, chosen.function)(TINY if tiny else CARD)


def work(job: dict) -> None:
    """Prints the rows; begins none that would, as long as the longest, not end in time."""
    start, longest = time.monotonic(), 0.0
    for name, measure in jobs_of(job["part"], job["tiny"]).items():
        begin = time.monotonic()
        if begin + longest - start > job["seconds"]:
            break
        try:
            row = measure()
        except Exception as error:  # such as no memory left: the other rows may do
            row = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        longest = max(longest, time.monotonic() - begin)
        print(json.dumps({"name": name, "part": job["part"], **row}), flush=True)


if __name__ == "__main__":
    # JAX takes memory as it needs it: PyTorch, in the same process, has some too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    work(json.loads(sys.argv[1]))
