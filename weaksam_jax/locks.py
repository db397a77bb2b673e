"""One process at a time in a folder that a command fills, and nobody else's files in it.

The lock is a POSIX record lock on `<folder>/.weaksam.lock`: the system lets go of it when the
process ends, however it ends, and a forked child does not hold it. The file stays and says which
command made the folder. Where a file system has no locks that is said, and the command goes on.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from weaksam_jax.errors import BadInput, printable
from weaksam_jax.files import make_folder, read_json

LOCK = ".weaksam.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_SIZE = 400  # bytes of the file, written at once: no reader sees a part
_OTHER = "give another --out"
# (device, inode) of the lock files that this process has locked: to close one would let go of it.
_held: set[tuple[int, int]] = set()


@dataclass(frozen=True)
class Lock:
    """A folder that this process holds. number: the open lock file's."""

    folder: Path
    number: int

    def check(self) -> None:
        """`BadInput` when the folder was removed, or put in another's place, since."""
        try:
            there = _identity((self.folder / LOCK).lstat())
        except OSError:
            there = None
        if there != _identity(os.fstat(self.number)):
            hint = "run the same command again"
            raise BadInput(self.folder, "was removed while the command ran", hint)


@contextlib.contextmanager
def locked(folder: Path, command: str, writes: Iterable[str] = ()) -> Iterator[Lock]:
    """Holds a folder, made where it is missing, for `command` (a word, such as "detect").

    writes: names in the folder that the command writes. Raises `BadInput`, before anything is
    written, when another process holds the folder, when it was made by another command, and when no
    command made it and it has one of these names: nobody's files are overwritten.
    """
    check_made_by(folder, command, writes)
    make_folder(folder)
    number = _open(folder)
    try:
        _take(folder, number)
        said = json.dumps({"made_by": command, "pid": os.getpid(), "host": socket.gethostname()})
        os.pwrite(number, f"{said:{_SIZE}}\n".encode(), 0)
        _held.add(_identity(os.fstat(number)))
        yield Lock(folder, number)
    finally:
        _held.discard(_identity(os.fstat(number)))
        os.close(number)


def _open(folder: Path) -> int:
    """The number of the lock file, opened without following a link or waiting for a pipe's other
    end; `BadInput` when it is no lock of ours, which is then left as it is."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        number = os.open(folder / LOCK, flags, 0o666)
    except FileNotFoundError as error:
        raise BadInput(folder, "cannot hold a file", "give another path") from error
    try:
        _check_kind(folder, os.fstat(number))
    except BadInput:
        os.close(number)
        raise
    return number


def _check_kind(folder: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_size > _SIZE + 1:
        kind = "longer than a lock" if stat.S_ISREG(status.st_mode) else "no regular file"
        raise BadInput(folder / LOCK, f"is {kind}: no command made it", _OTHER)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def check_made_by(folder: Path, command: str, writes: Iterable[str]) -> None:
    """`BadInput` when a folder is another command's, or has files of these names and is no
    command's."""
    if os.path.lexists(folder / LOCK):
        status = (folder / LOCK).lstat()
        _check_kind(folder, status)
        if _identity(status) in _held:
            raise BadInput(folder, "is in use by this command itself", _OTHER)
        said = holder(folder)
        if status.st_nlink > 1 and "made_by" not in said:
            raise BadInput(folder / LOCK, "is a second name of a file: no command made it", _OTHER)
        made_by = said.get("made_by", command)
        if made_by != command:
            raise BadInput(folder, f"was made by another command ({made_by})", _OTHER)
        return
    for name in writes:
        if os.path.lexists(folder / name):
            raise BadInput(folder / name, "was there before this command, which writes it", _OTHER)


def holder(folder: Path) -> dict:
    """What the lock file of a folder says: `made_by`, and `pid` and `host` of the last process that
    held it; empty when it says nothing."""
    try:
        _check_kind(folder, (folder / LOCK).lstat())
        said = read_json(folder / LOCK)
    except (OSError, BadInput):
        return {}
    return said if isinstance(said, dict) else {}


def _take(folder: Path, number: int) -> None:
    try:
        fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            text = "this file system has no locks: start no second command with this folder"
            print(f"{printable(folder)}: {text}", file=sys.stderr)
            return
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        said = holder(folder)
        who = f"process {said['pid']} on {said.get('host')}" if "pid" in said else "another process"
        hint = f"wait until it has ended, or {_OTHER}"
        raise BadInput(folder, f"is in use by {who}", hint) from error
