"""A fixed part of the fuzz command: 300 mutated inputs, each ends as it must."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_300_mutants_end_in_right_values_or_one_line(tmp_path):
    argv = ["-m", "tests.fuzz", "--count", "300", "--json", str(tmp_path / "rows.json")]
    argv += ["--keep", str(tmp_path / "kept")]
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 300 and not any(row["fault"] for row in rows)
    # Both ends are reached, and many successes are judged.
    assert sum(row["status"] == 2 for row in rows) > 100
    assert sum(row["judged"] is True for row in rows) > 40


@pytest.mark.slow
def test_60_outputs_keep_what_is_there(tmp_path):
    argv = ["-m", "tests.fuzz", "--of", "outputs", "--count", "60"]
    argv += ["--json", str(tmp_path / "rows.json"), "--keep", str(tmp_path / "kept")]
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len({row["target"] for row in rows}) == 4
    assert 10 < sum(row["status"] == 2 for row in rows) < 55


def test_a_fault_is_found(monkeypatch):
    """A command that writes beside its output, ends in a trace or sleeps is no success."""
    monkeypatch.syspath_prepend(ROOT)
    from tests.fuzz.sandbox import Ending

    def fault(status=0, stdout="", stderr="", outside=()):
        return Ending(status, stdout, stderr, 1.0, outside=outside).fault

    assert fault() is None and fault(2, stderr="error: x: is bad; mend it\n") is None
    assert fault(None) == "hang" and fault(-11) == "signal 11" and fault(1) == "status 1"
    assert fault(1, stderr="Traceback (most recent call last):\n") == "trace"
    assert fault(outside=("data/a.jpg",)) == "outside"
    assert fault(2) == "lines" and fault(2, stderr="error: a\nerror: b\n") == "lines"
    assert fault(2, stderr="error: \x1b[31m: is bad; mend it\n") == "escape"


def test_what_a_command_does_is_seen(tmp_path, monkeypatch):
    """The sandbox against a small module of its own."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(tmp_path)
    from tests.fuzz import sandbox

    (tmp_path / "misbehaves.py").write_text(
        "from pathlib import Path\n"
        "def main(argv):\n"
        "    if argv[0] == 'trace': raise RuntimeError('no')\n"
        "    if argv[0] == 'memory': bytearray(1 << 35)\n"
        "    Path(argv[1]).write_text('x')\n"
    )
    room = tmp_path / "room"
    (room / "out").mkdir(parents=True)

    def fault(*argv):
        return sandbox.run("misbehaves", argv, room, out=room / "out").fault

    assert fault("write", str(room / "out" / "a")) is None
    assert fault("write", str(room / "a")) == "outside"
    assert fault("trace") == "trace" and fault("memory") == "memory"
