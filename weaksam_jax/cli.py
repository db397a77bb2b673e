"""How every command ends: exit status and one line on stderr, whatever happened inside.

0 success; 2 wrong arguments, bad input, a path that cannot be used or a full disk; 130 Ctrl-C; 143
SIGTERM. Imports neither jax nor torch, so `bridge`'s commands use it too.
"""

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence

from weaksam_jax import interrupts
from weaksam_jax.errors import BadInput, printable
from weaksam_jax.progress import close_bars

# What a path of the user's can be that no program can mend.
_UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EIO, errno.ESTALE),
    errno.ENOTEMPTY,
)
# What a file can be too large for, and what helps.
_NO_ROOM = {
    errno.ENOSPC: ("disk full while writing {}", "free some space"),
    errno.EDQUOT: ("disk full while writing {}", "free some space"),
    errno.EFBIG: ("file size limit reached while writing {}", "raise it (ulimit -f)"),
}


def entry_point(
    main: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None
) -> int:
    """Runs `main(argv)` and returns the exit status: `sys.exit(entry_point(main))`.

    `BadInput`, a full disk and a path without access or in place of a folder become one line on
    stderr and 2, Ctrl-C 130, SIGTERM 143, a closed pipe (`--help | head`) 141 without a word, as a
    shell counts SIGPIPE. Signals are raised in the main thread, so that context managers (atomic
    files, checkpoints) clean up; a second one ends the process (`weaksam_jax.interrupts`). The
    `SystemExit` of an argument parser passes through (2 for wrong arguments, 0 for --help). Any
    other exception is a fault of the program and keeps its stack trace.

    What stdout or stderr cannot encode (LANG=C) is printed with backslash escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with interrupts.raised() as received:
        try:
            main(argv)
            return 0
        except BaseException as error:
            return _status_of(error, received)


def _status_of(error: BaseException, received: list[int]) -> int:
    """The exit status of an exception that is being handled, which has its line then."""
    signal = interrupts.signal_of(error, received)
    if signal is not None:
        close_bars()
        return interrupts.tell(signal)
    if isinstance(error, BrokenPipeError):
        # Whoever read our output (head, less) has seen enough. What is still buffered must not
        # complain when the interpreter flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    line = str(error) if isinstance(error, BadInput) else _unusable(error)
    if line is None:
        raise error
    close_bars()
    print(f"error: {printable(line)}", file=sys.stderr)
    return 2


def _unusable(error: BaseException) -> str | None:
    """The line of a full disk, or of a path that cannot be used; None for a fault of ours."""
    if not isinstance(error, Exception):
        return None
    full = _full_disk(error)
    if full is not None or not isinstance(error, OSError) or error.errno not in _UNUSABLE:
        return full
    hint = "give another path, or make it accessible"
    return f"{error.filename}: cannot be used ({error.strerror}); {hint}"


def _full_disk(error: BaseException | None) -> str | None:
    """The line of what was being written when there was no room; None when `error` is no such.

    Looks through the chain of causes; libraries (safetensors, tensorstore) also report a full disk
    as text in an exception of their own.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            problem, hint = _NO_ROOM[error.errno]
            return _again(problem.format(error.filename or "a file"), hint)
        text = str(error)
        for number, (problem, hint) in _NO_ROOM.items():
            if os.strerror(number) in text or errno.errorcode[number] in text:
                return _again(problem.format(f"a file ({text.splitlines()[0][:200]})"), hint)
        error = error.__cause__ or error.__context__
    return None


def _again(problem: str, hint: str) -> str:
    return f"{problem}; {hint} and run the same command again"
