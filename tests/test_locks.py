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


DEEP = "[" * 300


@pytest.mark.parametrize("content", [DEEP, '{"made_by": NaN}', "\udcfc", '{"pid": 1}', "5"])
def test_a_lock_file_that_says_nothing(tmp_path, content):
    (tmp_path / LOCK).write_text(content, errors="surrogateescape")
    assert "made_by" not in holder(tmp_path)
    with locked(tmp_path, "run", ["settings.json"]):
        assert holder(tmp_path)["made_by"] == "run"


def test_a_lock_file_nested_beyond_the_stack_is_no_lock(tmp_path):
    (tmp_path / LOCK).write_text("[" * 200_000)
    assert holder(tmp_path) == {}
    refused(tmp_path, "is longer than a lock")
    assert (tmp_path / LOCK).read_text() == "[" * 200_000


@pytest.mark.parametrize("long", [False, True])
def test_no_link_is_followed(tmp_path, long):
    victim, out = tmp_path / "victim.txt", tmp_path / "out"
    victim.write_text("precious" * (100 if long else 1))
    out.mkdir()
    before = victim.read_text()
    (out / LOCK).symlink_to(victim)
    refused(out, "is no regular file")
    (out / LOCK).unlink()
    os.link(victim, out / LOCK)
    refused(out, "is longer than a lock" if long else "is a second name of a file")
    assert victim.read_text() == before


def test_a_link_to_nothing_makes_nothing(tmp_path):
    (tmp_path / LOCK).symlink_to(tmp_path / "made")
    refused(tmp_path, "is no regular file")
    assert not (tmp_path / "made").exists()


def test_a_link_that_is_put_there_in_between(tmp_path, monkeypatch):
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    (tmp_path / LOCK).symlink_to(victim)
    monkeypatch.setattr("weaksam_jax.locks.check_made_by", lambda *_: None)
    with pytest.raises(OSError, match="symbolic links"):
        locked(tmp_path, "run").__enter__()
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_folder_is_no_lock(tmp_path, make):
    make(tmp_path / LOCK)
    assert holder(tmp_path) == {}
    refused(tmp_path, "is no regular file")


def refused(folder: Path, problem: str) -> None:
    with pytest.raises(BadInput, match=rf"{LOCK}: {problem}: no command made it; give another"):
        locked(folder, "run").__enter__()
