"""Ctrl-C and SIGTERM end every command in at most one line, at whatever moment."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.pipeline.commands import commands

ROOT = Path(__file__).parents[1]
LINES = {
    130: "interrupted; the same command resumes\n",
    143: "terminated; the same command resumes\n",
}


def begin(arguments, handled=True, **environment) -> subprocess.Popen:
    """Starts Python with these arguments; returns when it handles signals: before that it is the
    interpreter that starts."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while handled and process.poll() is None and not _handles_sigterm(process.pid):
        time.sleep(0.001)
    return process


def _handles_sigterm(pid: int) -> bool:
    """Whether a process has a handler of its own (Python has none of SIGTERM)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def ended(process, *signals) -> tuple[int, str]:
    """(status, stderr) after these signals, one right after the other."""
    for number in signals:
        if process.poll() is None:
            process.send_signal(number)
            time.sleep(0.2)  # signals of one moment are one
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_every_module_that_is_a_command_handles_signals_before_its_imports():
    for name, module, path in commands():
        assert module.split(".")[0] in ("experiments", "bridge"), name
        assert "signal" not in path.read_text(), f"{name} has rules of its own"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.15, 0.3])
@pytest.mark.parametrize("module", ["experiments.evaluate", "bridge.export"])
def test_a_signal_during_imports_is_one_line(module, seconds, number):
    process = begin(["-m", module, "--help"])
    time.sleep(seconds)
    status, said = ended(process, number)
    assert (status, said) in ((128 + number, LINES[128 + number]), (0, ""))
    assert seconds or status, "at the very beginning it cannot have been too late"


@pytest.mark.parametrize("argv", [["-m", "experiments", "compare"], ["-m", "bridge"]])
def test_the_packages_themselves_are_commands_too(argv):
    assert ended(begin(argv), signal.SIGINT) == (130, LINES[130])


def test_the_console_script_is_one(tmp_path):
    script = tmp_path / "weaksam"
    script.write_text("from experiments.__main__ import main\nraise SystemExit(main())\n")
    process = begin([str(script), "evaluate", "--help"], PYTHONPATH=str(ROOT))
    assert ended(process, signal.SIGINT) == (130, LINES[130])


def test_importing_the_packages_changes_no_handler():
    code = "import signal; a = signal.getsignal(2); import experiments, bridge\n"
    code += "assert signal.getsignal(2) is a and signal.getsignal(15) == signal.SIG_DFL"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# What a command does: threads of torch that nobody waits for, a clean-up that takes its time, a
# file that is half written.
WORK = """
import sys, threading, time
from pathlib import Path
from weaksam_jax import interrupts
from weaksam_jax.cli import entry_point
from weaksam_jax.files import atomic_path
interrupts.at_once()

def main(argv):
    import LIBRARY as library
    def work():
        while True:
            library.ones((600, 600)) @ library.ones((600, 600))
    for _ in range(2):
        threading.Thread(target=work, daemon=DAEMON).start()
    with atomic_path(Path(argv[0]) / "result") as path:
        path.write_text("half")
        print("ready", flush=True)
        try:
            time.sleep(30)
        finally:
            time.sleep(SECONDS)

sys.exit(entry_point(main, sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("signals", "status"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGINT] * 2, 130),
        ([signal.SIGINT] * 3, 130),
        ([signal.SIGTERM, signal.SIGINT], 143),
        ([signal.SIGTERM] * 4, 143),
    ],
)
def test_signals_one_after_the_other_end_in_one_line_and_leave_nothing(tmp_path, signals, status):
    library = "torch" if signals == [signal.SIGINT] * 2 else "numpy"
    code = WORK.replace("DAEMON", "True").replace("LIBRARY", library)
    code = code.replace("SECONDS", "20" if len(signals) > 1 else "0")
    process = begin(["-c", code, str(tmp_path)], handled=False)
    assert process.stdout.readline() == "ready\n"
    start = time.monotonic()
    assert ended(process, *signals) == (status, LINES[status])
    assert time.monotonic() - start < 18
    assert list(tmp_path.iterdir()) == []


def test_a_thread_that_never_ends_is_left_behind(tmp_path):
    """Python waits for such threads at its end: one more Ctrl-C is enough."""
    code = WORK.replace("DAEMON", "False").replace("LIBRARY", "numpy").replace("SECONDS", "0")
    process = begin(["-c", code, str(tmp_path)], handled=False)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == LINES[130]
    assert ended(process, signal.SIGINT) == (130, "")


SWALLOWED = """
import sys, time
from weaksam_jax import interrupts
from weaksam_jax.cli import entry_point

def main(argv):
    print("ready", flush=True)
    try:
        time.sleep(30)
    except BaseException as error:
        raise ImportError("numpy.core.multiarray failed to import") from None

sys.exit(entry_point(main))
"""


def test_what_is_raised_in_the_wake_of_a_signal_is_the_signal():
    process = begin(["-c", SWALLOWED], handled=False)
    assert process.stdout.readline() == "ready\n"
    assert ended(process, signal.SIGINT) == (130, LINES[130])


def test_a_process_that_was_forked_says_and_removes_nothing(tmp_path):
    code = """
import os, signal, sys, time
from pathlib import Path
from weaksam_jax import interrupts
mine = Path(sys.argv[1]) / "mine"
mine.touch()
interrupts.unfinished.add(mine)
interrupts.at_once()
child = os.fork()
if not child:
    signal.raise_signal(signal.SIGINT)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
assert mine.exists()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
