"""A part of the GPU card in a process of its own: what is planned and then each row, as JSON.

python -m experiments.bench.gpu_worker '{"part": "checks", "tiny": true, "seconds": 60}'
"""

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from typing import Any, Literal

from experiments.bench.gpu_sizes import CARD, ROW_SECONDS, TINY, Job, Jobs


@dataclass(frozen=True)
class Part:
    """seconds: its share of the time; module and function: what gives its jobs; side: whose device
    does the work."""

    seconds: float
    module: str
    function: str = "jobs"
    side: Literal["jax", "torch"] = "jax"


PARTS = {
    "checks": Part(60, "gpu_checks"),
    "training": Part(150, "gpu_ours", "train_jobs"),
    "PyTorch": Part(80, "gpu_torch", side="torch"),
    "detection": Part(80, "gpu_ours", "predict_jobs"),
    "SAM": Part(90, "gpu_sam", side="torch"),
}


def jobs_of(part: str, tiny: bool) -> Jobs:
    """The rows of a part by name, and the work behind each."""
    chosen = PARTS[part]
    module = import_module(f"experiments.bench.{chosen.module}")
    return getattr(module, chosen.function)(TINY if tiny else CARD)


def device_of(part: str) -> str:
    """What the device that a part computes on calls itself."""
    if PARTS[part].side == "torch":
        return import_module("experiments.bench.torch_side").device_name()
    return import_module("jax").devices()[0].device_kind


def work(part: str, tiny: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """{"planned": names of all rows}, then the rows; a part that cannot begin is a row, too."""
    end = time.monotonic() + seconds
    try:
        jobs, device = jobs_of(part, tiny), device_of(part)
    except Exception as error:  # such as a package that is broken
        yield {"name": part, "part": part, "failed": in_words(error)}
        return
    yield {"planned": list(jobs)}
    if device == "cpu" and not tiny:
        yield {"name": part, "part": part, "device": device, "failed": "no GPU is found"}
        return
    for row in rows_of(jobs, end):
        yield {"part": part, "device": device, **row}


def rows_of(jobs: Jobs, end: float) -> Iterator[dict[str, Any]]:
    """The rows, as long as they would be done before `end` by what others of their kind took."""
    took: dict[str, float] = {}
    waiting: dict[str, tuple[Job, Future | None]] = {}
    for word, items in groupby(jobs.items(), lambda item: item[1].together):
        group, begin = dict(items), time.monotonic()
        if word and begin + took.get("preparing", 0.0) > end:
            continue
        ready = prepared(group, end)
        took["preparing"] = time.monotonic() - begin
        waiting |= {name: (job, ready.get(name)) for name, job in group.items()}
        yield from of_ready(waiting, end, took)
    wait_for([one for _, one in waiting.values() if one], end, rows=1)
    yield from of_ready(waiting, end, took)


def prepared(group: Mapping[str, Job], end: float) -> dict[str, Future]:
    """What the jobs of a group prepare, all at the same time; some of it may not be done yet."""
    pool = ThreadPoolExecutor(min(len(group), os.cpu_count() or 1))
    ready = {name: pool.submit(job.prepare) for name, job in group.items() if job.prepare}
    wait_for(ready.values(), end, rows=len(group))
    pool.shutdown(wait=False)
    return ready


def wait_for(ready: Iterable[Future], end: float, rows: int) -> None:
    """Waits until all is done, but leaves time before `end` for so many rows."""
    left = max(0.0, end - time.monotonic())
    wait(ready, timeout=left - min(rows * ROW_SECONDS, left / 3))


def of_ready(
    waiting: dict[str, tuple[Job, Future | None]], end: float, took: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """The rows of jobs that are ready, which wait no longer."""
    for name, (job, ready) in list(waiting.items()):
        if ready is not None and not ready.done():
            continue
        del waiting[name]
        begin = time.monotonic()
        if begin + took.get(job.kind, 0.0) > end:
            continue
        beside = any(one is not None and not one.done() for _, one in waiting.values())
        row = outcome(job, ready)
        if beside and "ms" in row:
            row["beside"] = "others were compiled meanwhile"
        took[job.kind] = time.monotonic() - begin
        yield {"name": name, **row}


def outcome(job: Job, ready: Future | None) -> dict[str, Any]:
    """A row's fields; "failed" for an exception and for a loss that is no number."""
    try:
        row = job.measure() if ready is None else job.measure(ready.result())
    except Exception as error:  # such as no memory left: the other rows may do
        row = {"failed": in_words(error)}
    if not math.isfinite(row.get("loss", 0.0)):
        row = {**row, "failed": f"the loss is {row['loss']}"}
    return {name: in_json(value) for name, value in row.items()}


def in_json(value: Any) -> Any:
    """Numbers that JSON has none of as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main(job: dict[str, Any]) -> int:
    """Prints all lines; the exit status."""
    try:
        for line in work(**job):
            print(json.dumps(line, allow_nan=False), flush=True)
        return 0
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    # JAX takes memory as it needs it, and nearly all of it where it does.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    status = main(json.loads(sys.argv[1]))
    sys.stderr.flush()
    os._exit(status)  # whatever is still being prepared
