"""One command in a process of its own: how it ends, how long it takes, what it writes."""

import os
import re
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60
MEMORY = 4 << 30  # bytes beyond what the parent has mapped


@dataclass(frozen=True)
class Ending:
    """How a command ended. status: exit status, negative for a signal; None: it was still running
    after `SECONDS`. outside: files that are new, gone or changed outside of `out`."""

    status: int | None
    stdout: str
    stderr: str
    seconds: float
    outside: tuple[str, ...]

    @property
    def fault(self) -> str | None:
        """What no input may cause; None when it ended as it must: 0, or 2 with one line."""
        if self.status is None:
            return "hang"
        if "Traceback" in self.stderr or "Traceback" in self.stdout:
            return "memory" if "MemoryError" in self.stderr else "trace"
        if self.status < 0:
            return f"signal {-self.status}"
        if self.outside:
            return "outside"
        if self.status not in (0, 2):
            return f"status {self.status}"
        if self.status == 2 and len(errors_of(self.stderr)) != 1:
            return "lines"
        return "escape" if re.search(r"[\x00-\x08\x0e-\x1f\x7f]", self.stderr) else None


def errors_of(stderr: str) -> list[str]:
    """The lines of stderr that are errors (not progress bars and notes)."""
    return [line for line in stderr.replace("\r", "\n").splitlines() if line.startswith("error: ")]


def run(command: str, argv: Sequence[str], room: Path, out: Path) -> Ending:
    """Runs `main` of the module `command` in a fork of this process (its imports are there).

    room: the folder that holds all inputs; out: the folder in it that the command may write to.
    """
    before, began = _snapshot(room, out), time.monotonic()
    logs = [room.with_name(f"{room.name}.{name}") for name in ("stdout", "stderr")]
    pid = os.fork()
    if pid == 0:
        _child(command, argv, logs)
    status = _wait(pid, began + SECONDS)
    stdout, stderr = (path.read_text(encoding="utf-8", errors="replace") for path in logs)
    after = _snapshot(room, out)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    seconds = time.monotonic() - began
    return Ending(status, stdout, stderr, seconds, outside=tuple(sorted(changed)))


def _child(command: str, argv: Sequence[str], logs: Sequence[Path]) -> None:
    """Never returns."""
    status = 99
    try:
        os.setsid()
        for number, path in enumerate(logs, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        streams = [os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2)]
        sys.stdout, sys.stderr = streams
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_AS, (_mapped() + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = _call(command, list(argv))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _call(command: str, argv: list[str]) -> int:
    import importlib

    from weaksam_jax.cli import entry_point

    try:
        return entry_point(importlib.import_module(command).main, argv)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)


def _mapped() -> int:
    """Bytes of address space that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _wait(pid: int, until: float) -> int | None:
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _snapshot(room: Path, out: Path) -> dict[str, tuple[int, int]]:
    """(bytes, time of change) of every file in `room` but those in `out`."""
    found = {}
    for path in room.rglob("*"):
        if out not in (path, *path.parents):
            stat = path.lstat()
            size = stat.st_size if path.is_file() else 0
            found[path.relative_to(room).as_posix()] = size, stat.st_mtime_ns
    return {name: one for name, one in found.items() if not (room / name).is_dir()}
