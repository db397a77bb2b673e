"""Exit statuses that no other test sees."""

import os
import subprocess
import sys
from pathlib import Path


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
