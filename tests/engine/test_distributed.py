"""Several processes on this machine: how they are found, take turns, agree and stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import processes
import pytest

from weaksam_jax.engine.distributed import launch
from weaksam_jax.errors import BadInput

LOOP, TURNS = (processes.HERE / name for name in ("loop_job.py", "turns_job.py"))
STEPS = 24
EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": "host:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
    "JAX_PLATFORMS": "cpu",
}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "JAX_PLATFORMS": "cpu"}


def test_launchers_are_told_apart():
    assert launch({"JAX_PLATFORMS": "cpu"}) is None
    found = launch(EXPLICIT)
    assert found["coordinator_address"] == "host:1234"
    assert (found["process_id"], found["num_processes"]) == (3, 4)
    assert launch({**EXPLICIT, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None
    # Of 4 tasks, srun starts a step; the batch script itself is one process and must not wait.
    assert launch(SLURM) is None
    assert launch({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert launch({**SLURM, "SLURM_STEP_NUM_TASKS": "4"}) == {}
    assert launch({"OMPI_COMM_WORLD_SIZE": "2", "JAX_PLATFORMS": "cpu"}) == {}
    assert launch({**SLURM, "SLURM_STEP_NUM_TASKS": "4", **EXPLICIT}) == found


@pytest.mark.parametrize(
    "change",
    [
        {"JAX_PROCESS_ID": ""},
        {"JAX_PROCESS_ID": "4"},
        {"JAX_NUM_PROCESSES": "two"},
        {"JAX_COORDINATOR_ADDRESS": "host"},
    ],
)
def test_half_a_launch_is_bad_input(change):
    with pytest.raises(BadInput, match="JAX_PROCESS_ID"):
        launch({**EXPLICIT, **change})


def test_process_0_leads_and_the_others_hear(tmp_path):
    first, second = processes.run([TURNS, "returns", tmp_path], count=2)
    assert first == second == "{'made': [1, 2.5]} 1 1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["by 0"]


@pytest.mark.parametrize(("case", "status"), [("raises", 2), ("terminated", 143)])
def test_an_exception_in_process_0_ends_all(tmp_path, case, status):
    ended = processes.finish(processes.start([TURNS, case, tmp_path], count=2), 120)
    assert [one[0] for one in ended] == [status, status]
    last = [errors.splitlines()[-1] for _, _, errors in ended]
    if status == 2:
        assert "a file: is bad" in last[0] and "process 0: stopped" in last[1]


def test_a_process_that_fails_alone_leaves_nobody_waiting(tmp_path):
    begin = time.monotonic()
    ended = processes.finish(processes.start([TURNS, "dies", tmp_path], count=2), 150)
    assert all(status != 0 for status, _, _ in ended) and time.monotonic() - begin < 120
    assert "a disk: is broken" in ended[1][2]


def test_stages_are_run_together(tmp_path):
    first, second = processes.run([TURNS, "stages", tmp_path], count=2)
    metrics = "{'a': 0, 'b': 0, 'c': 0}"
    assert first == f"['a', 'b', 'c'] [{metrics}, {metrics}]\n"
    assert second == f"['b'] [{metrics}, {metrics}]\n"


def log_of(folder: Path) -> list[dict]:
    lines = (folder.parent / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_s"} for line in lines]


def steps_of(folder: Path) -> list[int]:
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())  # others are not finished


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(the bits of both processes, log) of a run of two processes that nobody stops."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return processes.run([LOOP, folder, STEPS, 0], count=2), log_of(folder)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run of which process 1 alone got SIGTERM."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    both = processes.start([LOOP, folder, STEPS, 0.3], count=2)
    end = time.monotonic() + 120
    while not steps_of(folder) and time.monotonic() < end and both[1].poll() is None:
        time.sleep(0.02)
    both[1].send_signal(signal.SIGTERM)
    ended = processes.finish(both, 120)
    assert [status for status, _, _ in ended] == [143, 143], ended
    assert all("the same command resumes" in errors for _, _, errors in ended)
    assert 0 < steps_of(folder)[-1] < STEPS
    return folder


def test_two_processes_are_one_bit_for_bit_in_what_they_return(undisturbed):
    (first, second), log = undisturbed
    assert first == second and len(first.strip()) == 32
    assert [line["step"] for line in log] == list(range(2, STEPS + 1, 2))


def test_sigterm_to_one_stops_both_and_the_restart_has_the_same_bits(stopped, undisturbed):
    assert processes.run([LOOP, stopped, STEPS, 0], count=2) == undisturbed[0]
    assert log_of(stopped) == undisturbed[1]


def test_another_number_of_processes_goes_on_from_a_checkpoint(stopped, undisturbed, tmp_path):
    """Two devices in one process see the same parts of a batch as two processes of one."""
    copy = tmp_path / "run"
    subprocess.run(["cp", "-r", stopped, copy], check=True)
    for step in steps_of(copy)[1:]:  # the finished run may be there too: keep the oldest
        subprocess.run(["rm", "-r", copy / "checkpoints" / str(step)], check=True)
    (output,) = processes.run([LOOP, copy, STEPS, 0], devices=2)
    found, want = (
        np.frombuffer(bytes.fromhex(text.strip()), np.float32)
        for text in (output, undisturbed[0][0])
    )
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_nan_in_one_share_stops_all_and_names_the_images_of_all(tmp_path):
    both = processes.start([LOOP, tmp_path / "run", STEPS, 0, 7], count=2)
    for status, _, errors in processes.finish(both, 120):
        last = errors.splitlines()[-1]
        assert status == 2 and "loss is nan at step" in last
        images = last.split("(images ")[1].split(")")[0].split(", ")
        assert len(images) == 4 and "7" in images


# Versions of JAX whose private `jax._src.distributed.global_state` is what engine/distributed.py
# takes it for. None of them has a public way to the key-value store.
KNOWN = ("0.10", "0.11", "0.12")
PRIVATE = """
import json, sys
import jax
jax.distributed.initialize(sys.argv[1], num_processes=1, process_id=0)
from jax._src.distributed import global_state as state
state.client.key_value_set("a", "b")
found = [state.process_id, state.num_processes, state.client.key_value_try_get("a")]
try:
    state.client.key_value_try_get("nothing")
except jax.errors.JaxRuntimeError as error:
    found.append("NOT_FOUND" in str(error))
print(json.dumps(found))
"""


def test_the_private_part_of_jax_is_as_known():
    """In a process of its own: what `process`, `run_on_leader` and `_hear` rely on."""
    address = f"127.0.0.1:{processes.free_port()}"
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE, address],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    message = (
        f"jax {jax.__version__}: jax._src.distributed.global_state, which "
        f"weaksam_jax.engine.distributed needs, is another than in jax {', '.join(KNOWN)}; see "
        f"what replaces it, or bound jax in pyproject.toml\n{done.stderr[-2000:]}"
    )
    assert done.returncode == 0, message
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 1, "b", True], message
    series = ".".join(jax.__version__.split(".")[:2])
    assert series in KNOWN, f"jax {series} works as well: add it to KNOWN and to pyproject.toml"


CACHE = """
import jax, jax.numpy as jnp
from weaksam_jax.engine.distributed import start
start()
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.split("/")[-1]))
jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.ones((8, 8)))
print(events.count("cache_hits"), events.count("cache_misses"))
"""


def hits_and_misses(home, **variables):
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    env |= {"HOME": str(home), "JAX_PLATFORMS": "cpu"} | variables
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", CACHE], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


def test_a_second_process_finds_the_compiled_programs(tmp_path):
    hits, misses = hits_and_misses(tmp_path)
    assert hits == 0 and misses > 0 and any((tmp_path / ".cache/weaksam-jax").iterdir())
    assert hits_and_misses(tmp_path) == (misses, 0)
    elsewhere = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "other")}
    assert hits_and_misses(tmp_path, **elsewhere) == (0, misses)
    off = tmp_path / "off"
    off.mkdir()
    assert hits_and_misses(off, JAX_COMPILATION_CACHE_DIR="") == (0, 0)
    assert not any(off.iterdir())
