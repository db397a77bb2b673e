"""Exit statuses that no other test sees."""

import os
import subprocess
import sys
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
