"""Tests run on the CPU; property tests have no deadline (the first example compiles)."""

import os
import signal
import subprocess
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several workers would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# XLA's optimizations take half of the suite's time and are not ours to test; the whole pipelines of
# `tiny_pipeline` run with them, as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest
from hypothesis import settings

settings.register_profile("no deadline", deadline=None, derandomize=True)
settings.load_profile("no deadline")
# A suite that was started in the background ignores SIGINT, and so would the programs it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """The tests of a folder run in one worker (pytest-xdist): they share fixtures that train."""
    root = Path(__file__).parent
    for item in items:
        folder = item.path.parent.relative_to(root).as_posix()
        item.add_marker(pytest.mark.xdist_group(folder))


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


@pytest.fixture(scope="module")
def compile_once(tmp_path_factory):
    """The same program is compiled once, however many runs of this module build it."""
    options = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, option) for option in options]
    jax.config.update(options[0], str(tmp_path_factory.mktemp("compiled")))
    jax.config.update(options[1], 0)
    yield
    for option, value in zip(options, before, strict=True):
        jax.config.update(option, value)
