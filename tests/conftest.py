"""Tests run on the CPU; property tests have no deadline (the first example compiles)."""

import gc
import os
import signal
import subprocess
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several workers would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# XLA's optimizations take half of the suite's time and are not ours to test; the whole pipelines of
# `tiny_pipeline` run with them, as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# A program is compiled once, however many tests, workers and processes of this session build it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="weaksam-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import pytest
from hypothesis import settings

# A process that has compiled thousands of programs has millions of objects, none of them garbage:
# looking through them again and again takes a tenth of the time.
gc.set_threshold(100_000, 20, 100)

settings.register_profile("no deadline", deadline=None, derandomize=True)
settings.load_profile("no deadline")
# A suite that was started in the background ignores SIGINT, and so would the programs it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many KiB; skips where that is not allowed."""
    mounted = []

    def mount(kibibytes: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"cannot mount a small file system: {error}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)
