"""Interrupted anywhere, the same command ends in the bits of an undisturbed run.

More kills, at other moments:  WEAKSAM_KILLS=10 WEAKSAM_KILL_SEED=1 pytest tests/experiments -k kill
"""

import json
import os
import random
import shutil
import signal
import time

import pytest
from tiny_pipeline import STAGES, assert_same_results, run_pipeline, start, with_dino

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("WEAKSAM_KILLS", "4"))
SEED = int(os.environ.get("WEAKSAM_KILL_SEED", "0"))


def moments(seconds):
    """(stage, seconds into it) of every kill, in the order of the pipeline."""
    rng = random.Random(SEED)
    stages = sorted(rng.choices(STAGES[1:], k=KILLS), key=STAGES.index)
    return [(stage, rng.random() * seconds[stage]) for stage in stages]


def end_at(process, stage, seconds, number, share=""):
    """Sends the signal that long after `stage` began (or was skipped), or after its progress bar
    has shown this share; returns (status, stderr)."""
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith(f"{stage}:") and share in line:
            time.sleep(seconds)
            process.send_signal(number)
            break
    said += process.stderr.readlines()
    return process.wait(), "".join(said)


def test_kills_at_random_moments_do_not_change_the_result(undisturbed, tmp_path):
    out = tmp_path / "run"
    seconds = json.loads((undisturbed.out / "metrics.json").read_text())["seconds"]
    killed = 0
    for stage, delay in moments(seconds):
        status, said = end_at(start(undisturbed.data, out), stage, delay, signal.SIGKILL)
        assert status in (0, -signal.SIGKILL), said[-3000:]
        killed += status == -signal.SIGKILL
    assert killed, "every call ended before its kill"
    run_pipeline(undisturbed.data, out)
    assert_same_results(undisturbed.out, out)


def test_killing_dino_does_not_change_what_it_becomes(undisturbed, with_both, tmp_path):
    """In its stage alone, after the first of its four steps: all that was before is there."""
    out = tmp_path / "run"
    shutil.copytree(undisturbed.out, out)
    process = start(undisturbed.data, out, *with_dino())
    status, said = end_at(process, "retrain_dino", 0, signal.SIGKILL, share=" 25%")
    assert status == -signal.SIGKILL, said[-3000:]
    run_pipeline(undisturbed.data, out, *with_dino())
    assert_same_results(with_both.out, out)


def test_ctrl_c_and_sigterm_end_in_one_line_and_resume(undisturbed, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(undisturbed.out, out)
    for stage in STAGES[3:]:
        (out / "stages" / f"{stage}.json").unlink()
        if (out / stage).exists():
            shutil.rmtree(out / stage)
    for stage, number, status, word in (
        ("wsod", signal.SIGINT, 130, "interrupted"),
        ("retrain", signal.SIGTERM, 143, "terminated"),
    ):
        process = start(undisturbed.data, out)
        got, said = end_at(process, stage, 0.3, number)
        assert got == status, said[-3000:]
        assert said.splitlines()[-1] == f"{word}; the same command resumes"
        assert "Traceback" not in said
        assert not (out / "stages" / f"{stage}.json").exists() and not list(out.rglob("*.tmp"))
    run_pipeline(undisturbed.data, out)
    assert_same_results(undisturbed.out, out)
