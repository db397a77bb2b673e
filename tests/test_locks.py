"""One process at a time in a folder, and nobody else's files in it."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from weaksam_jax.errors import BadInput
from weaksam_jax.locks import LOCK, check_made_by, holder, locked

ROOT = Path(__file__).parents[1]
HOLD = """
import os, sys, time
from pathlib import Path
from weaksam_jax.locks import locked
with locked(Path(sys.argv[1]), "run"):
    if sys.argv[2:]:  # a child that lives on
        if not os.fork():
            time.sleep(60)
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


def hold(folder: Path, *more: str) -> tuple[subprocess.Popen, int]:
    """Another process that holds a folder, and its number."""
    command = [sys.executable, "-c", HOLD, str(folder), *more]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("more", [(), ("a child that lives on",)])
def test_a_second_process_is_told_and_a_dead_one_does_not_keep_the_lock(tmp_path, more):
    out = tmp_path / "run"
    process, number = hold(out, *more)
    try:
        with pytest.raises(BadInput, match=rf"is in use by process {number} on \S+; wait"):
            locked(out, "run").__enter__()
        process.kill()
        process.wait()
        with locked(out, "run") as lock:
            lock.check()
            assert holder(out)["pid"] == os.getpid()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_process_does_not_let_go_of_its_own_lock(tmp_path):
    with locked(tmp_path, "run"):
        with pytest.raises(BadInput, match="is in use by this command itself"):
            locked(tmp_path, "run").__enter__()
        code = HOLD.replace("time.sleep(60)", "")
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
        assert done.returncode == 1
    with locked(tmp_path, "run"):
        pass


def test_files_that_were_there_before_are_nobodys_to_overwrite(tmp_path):
    (tmp_path / "settings.json").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"settings\.json: was there before"):
        locked(tmp_path, "run", ["metrics.json", "settings.json"]).__enter__()
    assert not (tmp_path / LOCK).exists()
    with locked(tmp_path, "run", ["metrics.json"]):
        (tmp_path / "metrics.json").touch()
    with locked(tmp_path, "run", ["metrics.json"]):  # its own, now
        pass
    with pytest.raises(BadInput, match=r"was made by another command \(run\)"):
        locked(tmp_path, "detect", []).__enter__()


def test_a_link_to_nothing_is_there_too(tmp_path):
    (tmp_path / "metrics.json").symlink_to(tmp_path / "gone")
    with pytest.raises(BadInput, match="was there before"):
        check_made_by(tmp_path, "run", ["metrics.json"])


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_removed_is_missed(tmp_path, again):
    out = tmp_path / "run"
    with locked(out, "run") as lock:
        (out / LOCK).unlink()
        out.rmdir()
        if again:
            out.mkdir()
            (out / LOCK).touch()
        with pytest.raises(BadInput, match="was removed while the command ran"):
            lock.check()


@pytest.mark.parametrize("content", ["", "{", "[]", "\0" * 10])
def test_a_lock_file_cut_short_by_a_kill_is_still_ours(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    with locked(tmp_path, "run", ["settings.json"]):
        assert json.loads((tmp_path / LOCK).read_text().strip("\0 \n"))["made_by"] == "run"


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    with locked(tmp_path, "run"):
        assert "has no locks" in capsys.readouterr().err
