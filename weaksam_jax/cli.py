"""How every command ends: exit status and one line on stderr, whatever happened inside.

0 success; 2 wrong arguments, bad input, a path that cannot be used or a full disk; 130 Ctrl-C; 143
SIGTERM. Imports neither jax nor torch, so `bridge`'s commands use it too.
"""

import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from weaksam_jax.errors import BadInput, printable

# What a path of the user's can be that no program can mend.
_UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    errno.ENAMETOOLONG,
)


class Terminated(BaseException):
    """SIGTERM arrived. As KeyboardInterrupt, it is no `Exception`: only clean-up sees it."""


def entry_point(
    main: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None
) -> int:
    """Runs `main(argv)` and returns the exit status: `sys.exit(entry_point(main))`.

    `BadInput`, a full disk and a path without access or in place of a folder become one line on
    stderr and 2, Ctrl-C 130, SIGTERM 143, a closed pipe (`--help | head`) 141 without a word, as a
    shell counts SIGPIPE. SIGTERM is raised as
    `Terminated` in the main thread, so that context managers (atomic files, checkpoints) clean up.
    The `SystemExit` of an argument parser passes through (2 for wrong arguments, 0 for
    --help). Any other exception is a fault of the program and keeps its stack trace.

    What stdout or stderr cannot encode (LANG=C) is printed with backslash escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _signals_raise():
            main(argv)
    except BadInput as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command resumes", 130)
    except Terminated:
        return _fail("terminated; the same command resumes", 143)
    except BrokenPipeError:
        # Whoever read our output (head, less) has seen enough. What is still buffered must not
        # complain when the interpreter flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        full = _full_disk(error)
        if full is None and isinstance(error, OSError) and error.errno in _UNUSABLE:
            hint = "give another path, or make it accessible"
            return _fail(f"{error.filename}: cannot be used ({error.strerror}); {hint}", 2)
        if full is None:
            raise
        return _fail(
            f"disk full while writing {full}; free some space and run the same command again", 2
        )
    return 0


def _fail(line: str, status: int) -> int:
    # A progress bar that was cut short ends its line first, so that ours is a line and the last.
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
    line = printable(line)
    print(f"error: {line}" if status == 2 else line, file=sys.stderr)
    return status


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM raises `Terminated` inside the block, Ctrl-C `KeyboardInterrupt` (only the main
    thread may set handlers)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(signum, frame):
        raise KeyboardInterrupt if signum == signal.SIGINT else Terminated

    previous = {one: signal.signal(one, handler) for one in (signal.SIGINT, signal.SIGTERM)}
    timers: list[threading.Timer] = []
    hook, sys.unraisablehook = sys.unraisablehook, _once_more(sys.unraisablehook, timers)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for timer in timers:  # one that has not come yet has nobody to tell
            timer.cancel()
        for one, old in previous.items():
            signal.signal(one, old)


def _once_more(hook: Callable, timers: list[threading.Timer]) -> Callable:
    """`sys.unraisablehook` that sends a signal again whose exception went nowhere; the timers that
    do so are added to `timers`.

    Python prints and forgets what is raised while objects are collected: in a callback of the
    collector (JAX has one) or in what an object does at its end.
    """
    signals = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGTERM}

    def again(unraisable):
        if unraisable.exc_type not in signals:
            hook(unraisable)
            return
        what = os.getpid(), signals[unraisable.exc_type]
        timers.append(threading.Timer(0.05, os.kill, what))  # the collection is over then
        timers[-1].start()

    return again


def _full_disk(error: BaseException | None) -> str | None:
    """What was being written when the disk was full; None when `error` is something else.

    Looks through the chain of causes; libraries (safetensors, tensorstore) also report a full disk
    as text in an exception of their own.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return str(error.filename or "a file")
        text = str(error)
        if os.strerror(errno.ENOSPC) in text or "ENOSPC" in text:
            return f"a file ({text.splitlines()[0][:200]})"
        error = error.__cause__ or error.__context__
    return None
