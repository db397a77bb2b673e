"""The loop: resume to the same bits however it was stopped, stop on NaN, refuse what is damaged."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import loop_job
import numpy as np
import pytest

from weaksam_jax.engine.weights import load_params, save_params
from weaksam_jax.errors import BadInput

STEPS = 24


def log_of(folder: Path) -> list[dict]:
    lines = (folder.parent / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_s"} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return loop_job.run(folder, STEPS).tobytes().hex(), log_of(folder)


def start(folder, pause=0.05):
    command = [sys.executable, loop_job.__file__, str(folder), str(STEPS), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(folder, process):
    """Until the first checkpoint is there: start-up takes seconds on a busy machine."""
    end = time.monotonic() + 120
    while not any((folder / "checkpoints").glob("[0-9]*")) and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_finished_run_is_not_repeated(tmp_path, undisturbed):
    first = loop_job.run(tmp_path / "run", STEPS)
    again = loop_job.run(tmp_path / "run", STEPS)
    assert first.tobytes() == again.tobytes()
    assert log_of(tmp_path / "run") == undisturbed[1]


def test_stopped_between_checkpoints_and_resumed(tmp_path, undisturbed):
    loop_job.run(tmp_path / "run", 7)  # saves at 3, 6 and the last step
    assert loop_job.run(tmp_path / "run", STEPS).tobytes().hex() == undisturbed[0]


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path, undisturbed):
    folder, chance = tmp_path / "run", random.Random(0)
    for _ in range(4):
        process = start(folder)
        wait_for_checkpoint(folder, process)
        time.sleep(chance.uniform(0, 0.7))
        process.kill()
        process.wait()
    output, errors = start(folder, 0).communicate(timeout=240)
    assert output.strip() == undisturbed[0], errors
    assert log_of(folder) == undisturbed[1]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_tell(tmp_path, undisturbed, number, status):
    folder = tmp_path / "run"
    process = start(folder)
    wait_for_checkpoint(folder, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status and "Traceback" not in errors
    assert "the same command resumes" in errors.splitlines()[-1]
    output, errors = start(folder, 0).communicate(timeout=240)
    assert output.strip() == undisturbed[0], errors


def test_nan_stops_and_names_the_images(tmp_path):
    with pytest.raises(BadInput, match=r"loss is nan at step \d+ \(images .*\b7\b"):
        loop_job.run(tmp_path / "run", STEPS, bad=7)
    for kept in (tmp_path / "run" / "checkpoints").glob("[0-9]*"):
        assert int(kept.name) < STEPS


def test_damaged_checkpoint_is_named(tmp_path):
    loop_job.run(tmp_path / "run", 6)
    latest = tmp_path / "run" / "checkpoints" / "6"
    for path in latest.rglob("*"):
        if path.is_file() and path.stat().st_size > 60:
            path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BadInput, match="delete this folder"):
        loop_job.run(tmp_path / "run", STEPS)


def test_params_round_trip(tmp_path):
    params = {"a": {"kernel": np.arange(6.0).reshape(2, 3)}, "b": np.ones(3, np.float16)}
    save_params(tmp_path / "p.safetensors", params, {"note": "x"})
    loaded = load_params(tmp_path / "p.safetensors")
    np.testing.assert_array_equal(loaded["a"]["kernel"], params["a"]["kernel"])
    assert loaded["b"].dtype == np.float16
    whole = (tmp_path / "p.safetensors").read_bytes()
    (tmp_path / "p.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="no whole safetensors"):
        load_params(tmp_path / "p.safetensors")
