"""Several processes as one program: how they find each other, wait for one another and agree.

    srun python -m experiments.voc07 --out /shared/run         Slurm, one process per task
    mpirun python -m experiments.voc07 --out /shared/run       Open MPI 4
    python -m experiments.voc07 --out /shared/run              on every worker of a TPU pod
    JAX_COORDINATOR_ADDRESS=host:port JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0 python -m ...

Every process runs the same command and sees the same files (`--out` lies on a shared disk). Each
reads its share of every batch; process 0 alone writes logs, parameters and reports, checkpoints are
written by all. What a single process needs none of costs nothing there.
"""

import importlib.util
import itertools
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

# JAX has no public way to its key-value store, nor to a process's number before devices are
# touched; tests/engine/test_distributed.py names the versions whose private one is this.
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from weaksam_jax.engine.compilation_cache import enable_compilation_cache
from weaksam_jax.errors import BadInput
from weaksam_jax.interrupts import Terminated

_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SIZES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
# A process that ends alone waits so long for the others, which JAX then ends too (seconds).
_SHUTDOWN = 15
_POLL = 0.2  # seconds between two looks at what process 0 says
_turns = itertools.count()


def start() -> None:
    """What an entry point does before a device is touched: joins the other processes, if there are
    any, and keeps compiled programs on disk.

    Raises `BadInput` when the processes cannot find each other.
    """
    enable_compilation_cache()
    how = launch(os.environ)
    if how is None or jax.distributed.is_initialized():
        return
    # JAX would take SIGTERM for itself; the training loop has its own agreement (`all_reduce_max`).
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**how, shutdown_timeout_seconds=_SHUTDOWN)
    except (ValueError, RuntimeError) as error:
        if _is_tpu(os.environ) and not how and "coordinator_address" in str(error):
            return  # libtpu is installed, but this is no TPU machine
        reason = str(error).strip().splitlines()[0][:200]
        hint = f"start all of them at once, or set {', '.join(_EXPLICIT)}"
        raise BadInput("several processes", f"do not find each other ({reason})", hint) from error


def launch(env: Mapping[str, str]) -> dict[str, Any] | None:
    """The arguments of `jax.distributed.initialize` that this environment asks for.

    None: a single process. Empty: JAX finds the rest itself (Slurm's `srun`, Open MPI, TPU).
    Explicit variables win, and then `JAX_LOCAL_DEVICE_IDS` or `CUDA_VISIBLE_DEVICES` deals out the
    devices of a machine. Raises `BadInput` when they are incomplete or no numbers.
    """
    given = [env.get(name, "") for name in _EXPLICIT]
    if any(given):
        address, count, index = given
        fits = ":" in address and count.isdigit() and index.isdigit() and int(index) < int(count)
        if not fits:
            hint = 'give all three, e.g. "host:1234", "2" and "0"; the index counts from 0'
            raise BadInput(", ".join(_EXPLICIT), f"are {given}", hint)
        if int(count) == 1:
            return None
        return {
            "coordinator_address": address,
            "num_processes": int(count),
            "process_id": int(index),
            "cluster_detection_method": "deactivate",
        }
    # Of Slurm only the size of a step counts: a batch script without srun is one process.
    if any(env.get(name, "1") != "1" for name in _SIZES) or _is_tpu(env):
        return {}
    return None


def _is_tpu(env: Mapping[str, str]) -> bool:
    allowed = env.get("JAX_PLATFORMS", "tpu").split(",")
    return "tpu" in allowed and importlib.util.find_spec("libtpu") is not None


def process() -> tuple[int, int]:
    """(index, count) of this process; touches no device."""
    return global_state.process_id, global_state.num_processes


def is_leader() -> bool:
    """Whether this process is the one that writes."""
    return process()[0] == 0


def run_on_leader(work: Callable[[], Any]) -> Any:
    """Process 0 does `work` while the others wait for its end, for hours if it takes them.

    All get what it returns (JSON). An exception in process 0 ends the others too: Ctrl-C and
    SIGTERM as themselves, everything else as `BadInput`. Devices are not touched.
    """
    index, count = process()
    if count == 1:
        return work()
    name = f"weaksam_jax/{next(_turns)}"
    return _hear(name) if index else _say(name, work)


def run_on_all(work: Callable[[], Any]) -> list[Any]:
    """Every process does `work` and waits for the others, for hours if it takes them.

    All get what it returned (JSON) in each process, in their order. An exception in one of them
    ends the others too, as in `run_on_leader`, once they have done theirs.
    """
    index, count = process()
    if count == 1:
        return [work()]
    name = f"weaksam_jax/{next(_turns)}"
    own = _say(f"{name}/{index}", work)
    return [own if one == index else _hear(f"{name}/{one}", one) for one in range(count)]


def _say(name: str, work: Callable[[], Any]) -> Any:
    """Does `work` and says to the other processes under this name how it went."""
    said = {"error": "stopped"}
    try:
        result = work()
        said = {"value": result}
        return result
    except (KeyboardInterrupt, Terminated) as error:
        said = {"error": type(error).__name__}
        raise
    finally:
        global_state.client.key_value_set(name, json.dumps(said))


def run_leader_first(work: Callable[[], Any]) -> Any:
    """Every process does `work`, process 0 before the others: what it writes, they find."""
    done: list = []
    run_on_leader(lambda: done.append(work()))
    return done[0] if done else work()


def _hear(name: str, teller: int = 0) -> Any:
    """What a process said under this name. Asks again and again, so that a signal is heard."""
    while True:
        try:
            said = json.loads(global_state.client.key_value_try_get(name))
            break
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" not in str(error):
                raise
            time.sleep(_POLL)
    if "value" in said:
        return said["value"]
    for stop in (KeyboardInterrupt, Terminated):
        if said["error"] == stop.__name__:
            raise stop
    raise BadInput(f"process {teller}", "stopped", "see what it said")


def all_reduce_max(value: int) -> int:
    """The largest of all processes' values: int32. Every process must call it, in the same order,
    and with no training step on its way (the CPU's collectives have no order of their own)."""
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def gather_ids(ids: np.ndarray) -> np.ndarray:
    """The int64 ids `[n]` of all processes, `[processes * n]`; every process must call it."""
    halves = np.ascontiguousarray(ids, np.int64).view(np.int32)  # JAX would cut int64 to int32
    return multihost_utils.process_allgather(halves, tiled=True).view(np.int64)
