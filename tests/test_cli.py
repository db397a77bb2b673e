"""Exit statuses that no other test sees."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from weaksam_jax.cli import entry_point
from weaksam_jax.files import write_text


def test_a_reader_that_has_seen_enough_gets_no_stack_trace():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "experiments.evaluate", "--help"],
        cwd=Path(__file__).parents[1],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_path_that_cannot_be_used_is_one_line(tmp_path, capsys):
    file = tmp_path / "notes.txt"
    file.touch()
    assert entry_point(lambda _: write_text(file / "out" / "a.json", "{}")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {file}") and line.endswith("make it accessible")
    assert entry_point(lambda _: write_text(tmp_path / ("a" * 300), "{}")) == 2
    assert "File name too long" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):  # of a file of ours: a fault of the program
        entry_point(lambda _: (tmp_path / "gone").read_text())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_a_garbage_collection_is_not_lost(number, status):
    """Python forgets what is raised in a callback of the collector, such as JAX's."""

    sent = []

    def callback(phase, info):
        if not sent:
            sent.append(number)
            signal.raise_signal(number)

    def main(argv):
        gc.callbacks.append(callback)
        try:
            gc.collect()
            time.sleep(30)  # interrupted long before
        finally:
            gc.callbacks.remove(callback)

    assert entry_point(main) == status  # 0 if the signal were lost


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_an_object_ends_is_not_lost(number, status):
    class Ends:
        def __del__(self):
            signal.raise_signal(number)

    def main(argv):
        one = Ends()
        del one
        time.sleep(5)

    assert entry_point(main) == status  # 0 if the signal were lost
    time.sleep(0.2)  # nothing comes late
