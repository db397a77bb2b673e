"""The training loop, from top to bottom; it knows nothing of models."""

import contextlib
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

import grain
import jax
from jax.sharding import Mesh

from weaksam_jax import runlog
from weaksam_jax.engine.checkpoint import CHECKPOINTS, Checkpoints
from weaksam_jax.engine.distributed import all_reduce_max, gather_ids, is_leader, process
from weaksam_jax.engine.mesh import put_batch
from weaksam_jax.engine.step import TrainState
from weaksam_jax.errors import BadInput
from weaksam_jax.interrupts import EXCEPTIONS, collected
from weaksam_jax.progress import progress_bar


def train(
    state: TrainState,
    step_fn: Callable,
    batches: grain.DatasetIterator,
    steps: int,
    folder: str | Path,
    mesh: Mesh,
    *,
    checkpoint_every: int = 500,
    log_every: int = 20,
    name: str = "train",
    log: str | Path | None = None,
    every_step: str | None = None,
) -> TrainState:
    """Trains from the latest checkpoint (else from `state`) to step `steps`; returns that state.

    state: from `create_state`; step_fn: from `make_train_step`, which donates it. batches: a fresh
    Grain iterator of dictionaries of arrays `[images, ...]` (`weaksam_jax.data.batches`); its
    `image_id` stays on the host. Writes `folder/checkpoints` (every `checkpoint_every` steps, at
    the end, and on Ctrl-C or SIGTERM) and appends lines `{"stage": name, "step", means since the
    last line, "images_per_s"}` to `log` (None: `folder/../log.jsonl`) every `log_every` steps; of
    metrics whose names start with `every_step` the line also holds `{"every_step": {metric: [the
    value at each of these steps]}}`. A run that was killed and started again ends in the same bits,
    and but for `images_per_s` in the same log.

    Several processes (each with its share of every batch, `folder` on a shared disk) do the same
    steps; the first alone logs. When one of them is told to stop, all save and stop after the same
    step, the next that is a multiple of `log_every`.

    Raises `BadInput` on a loss that is not finite (naming the step and its images), on a batch that
    does not divide among the devices and on a damaged checkpoint; `KeyboardInterrupt` or
    `Terminated` after saving.
    """
    folder = Path(folder)
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    with contextlib.closing(checkpoints), collected() as received:
        state, pending = checkpoints.restore(state, batches)
        done = int(state.step)
        path = Path(log or folder.parent / runlog.FILE)
        lines = _Log(path, name, done, pending=pending, every_step=every_step)
        batch = next(batches) if done < steps else {}
        alone, steps_left = process()[1] == 1, range(done, steps)
        bar = progress_bar(
            steps_left, name, total=steps, initial=done, unit="step", mininterval=1,
            disable=not is_leader(),
        )  # fmt: skip
        for step in bar:
            ids = batch.pop("image_id", None)
            on_device = put_batch(batch, mesh)
            with jax.transfer_guard("disallow"):
                state, metrics = step_fn(state, on_device)
            lines.add(step + 1, metrics, ids, images=len(next(iter(batch.values()))))
            last = step + 1 == steps
            log = last or (step + 1) % log_every == 0
            if log:
                bar.set_postfix_str(lines.write(step + 1))
            # Processes ask one another, which waits for the device as the log does: not each step.
            stop = all_reduce_max(received[0] if received else 0) if alone or log else 0
            if last or stop or (step + 1) % checkpoint_every == 0:
                lines.fetch()
                checkpoints.save(state, batches, lines.pending)
                if stop:
                    raise EXCEPTIONS[signal.Signals(stop)]
            # The device is still at work on this step while the host makes the next batch; the
            # checkpoint above was taken before, so the iterator stood right after this batch.
            if not last:
                batch = next(batches)
    return state


class _Log:
    """Collects metrics on the device, fetches them at log points, writes `log.jsonl`."""

    def __init__(
        self, path: Path, stage: str, step: int, pending: list[dict], every_step: str | None
    ):
        self._path, self._stage, self._every_step = path, stage, every_step
        self.pending = list(pending)  # fetched, but not yet part of a line
        self._on_device: list[tuple] = []  # (step, metrics, image ids)
        self._images, self._start = 0, time.perf_counter()
        if is_leader():
            runlog.forget(path, stage, step)

    def add(self, step: int, metrics: dict, ids, images: int) -> None:
        """Notes a step (of so many images in this process) without waiting for it."""
        self._on_device.append((step, metrics, ids))
        self._images += images * process()[1]

    def fetch(self) -> None:
        """Waits for the noted steps; raises `BadInput` at the first that is not finite.

        Metrics are means over all devices, so every process raises at the same step.
        """
        values = jax.device_get([metrics for _, metrics, _ in self._on_device])
        for (step, _, ids), metrics in zip(self._on_device, values, strict=True):
            metrics = {key: float(value) for key, value in metrics.items()}
            bad = [key for key, value in metrics.items() if not math.isfinite(value)]
            if bad:
                where = "unknown" if ids is None else ", ".join(map(str, gather_ids(ids).tolist()))
                problem = f"{bad[0]} is {metrics[bad[0]]} at step {step} (images {where})"
                hint = "lower the learning rate or look at these images, then run it again"
                raise BadInput(f"training of {self._stage}", problem, hint)
            self.pending.append(metrics)
        self._on_device = []

    def write(self, step: int) -> str:
        """Appends one line: the means since the last; returns a short text for the bar."""
        self.fetch()
        count, seconds = len(self.pending), time.perf_counter() - self._start
        means = {key: sum(m[key] for m in self.pending) / count for key in self.pending[0]}
        speed = round(self._images / seconds, 2)
        line = {"stage": self._stage, "step": step, **means, "images_per_s": speed}
        start = self._every_step
        keys = [key for key in means if start and key.startswith(start)]
        each = {key: [m[key] for m in self.pending] for key in keys}
        line |= {"every_step": each} if each else {}
        if is_leader():
            runlog.append(self._path, line)
        self.pending, self._images, self._start = [], 0, time.perf_counter()
        return f"{speed:.1f} images/s, loss {means['loss']:.4f}"
