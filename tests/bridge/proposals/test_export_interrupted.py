"""Ctrl-C while images are worked on by several threads: one line, however often it comes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from folders import write_csv

from bridge.proposals.verify import verify_split

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    rows = [f"{number}.jpg,dog,train" for number in range(40)]
    return write_csv(tmp_path_factory.mktemp("photos"), [*rows, "z.jpg,dog,test"])


def export(data: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "bridge.export", "--split", "train", "--preset", "mini"]
    return subprocess.Popen(
        [*command, "--data", str(data), "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def files(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "status"),
    [
        ([signal.SIGINT] * 2, 130),
        ([signal.SIGINT] * 3, 130),
        ([signal.SIGTERM, signal.SIGINT], 143),
    ],
)
def test_signals_one_after_the_other(data, tmp_path, signals, status):
    process = export(data, tmp_path)
    while not files(tmp_path) and process.poll() is None:
        time.sleep(0.01)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.05)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status, said[-2000:]
    assert "Traceback" not in said and said.count("the same command resumes") == 1
    assert said.endswith("the same command resumes\n")
    left = files(tmp_path)
    assert left and not [path for path in left if path.suffix == ".tmp"]
    process = export(data, tmp_path)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said[-2000:]
    assert verify_split(tmp_path, "train", progress=False) == 40
