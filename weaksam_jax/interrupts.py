"""Ctrl-C and SIGTERM of a command: one line on stderr and 130 or 143, at whatever moment.

While modules are imported a signal ends the process on the spot (`at_once`): nothing is half done
then, and an exception in the middle of an import comes out as anything. While a command works the
first signal raises (`raised`), so that context managers clean up; the next ends the process on the
spot, because cleaning up waits for threads of C code, which abort when the interpreter ends without
them. Imports the standard library alone: it comes before everything that takes time.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn


class Terminated(BaseException):
    """SIGTERM arrived. As KeyboardInterrupt, it is no `Exception`: only clean-up sees it."""


STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
EXCEPTIONS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
LINES = {
    signal.SIGINT: "interrupted; the same command resumes",
    signal.SIGTERM: "terminated; the same command resumes",
}
# Files that are being written: a process that ends on the spot takes them with it.
unfinished: set[Path] = set()
_told: list[int] = []  # the signal whose line is on stderr
_process = os.getpid()  # a forked child says nothing and removes nothing


def at_once() -> None:
    """From here on Ctrl-C and SIGTERM end this process on the spot: for the time of imports, and
    for what Python does after a command. To be called by a process that is a command, and once."""
    for number in STATUS:
        signal.signal(number, lambda signum, frame: end(signum))
    atexit.register(_leave)


def first_of_all(*scripts: str) -> None:
    """`at_once` in a process that is a command of the package that calls it: one of these console
    scripts, or a module that `python -m` runs.

    A package is imported before its module, and until that is found `sys.argv[0]` is "-m".
    """
    called = os.path.basename(sys.argv[0]) if sys.argv else ""
    if called in ("-m", *scripts) and threading.current_thread() is threading.main_thread():
        at_once()


@contextlib.contextmanager
def on_the_spot() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM end the process as after `at_once`: for imports of a command that
    runs already."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled_by(lambda signum, frame: end(signum)):
        yield


@contextlib.contextmanager
def raised() -> Iterator[list[int]]:
    """Inside, SIGTERM raises `Terminated` and Ctrl-C `KeyboardInterrupt`, the first of them; the
    next ends the process on the spot. Yields the list of the signals that came.

    Does nothing but in the main thread, which alone may set handlers.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    _told.clear()

    def handler(signum, frame):
        received.append(signum)
        if len(received) > 1:
            end(received[0])
        raise EXCEPTIONS[signum]

    timers: list[threading.Timer] = []
    hook, sys.unraisablehook = sys.unraisablehook, _once_more(sys.unraisablehook, received, timers)
    try:
        with _handled_by(handler):
            yield received
    finally:
        sys.unraisablehook = hook
        for timer in timers:  # one that has not come yet has nobody to tell
            timer.cancel()


@contextlib.contextmanager
def collected() -> Iterator[list[int]]:
    """Inside, the first Ctrl-C or SIGTERM is put into the list that is yielded, so that a step ends
    and can be saved; the next do what they did outside. In the main thread alone."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    outside = {number: signal.getsignal(number) for number in STATUS}

    def handler(signum, frame):
        if not received:
            received.append(signum)
        elif callable(outside[signum]):
            outside[signum](signum, frame)
        else:
            raise EXCEPTIONS[signum]

    with _handled_by(handler):
        yield received


@contextlib.contextmanager
def _handled_by(handler: Callable) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in STATUS}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def signal_of(error: BaseException, received: list[int]) -> int | None:
    """The signal that ended a command: the first that came, whatever was raised in its wake, or
    that of the exception (another process may have been told to stop)."""
    if received:
        return received[0]
    return next((one for one, kind in EXCEPTIONS.items() if isinstance(error, kind)), None)


def tell(number: int, before: str = "") -> int:
    """Writes the line of a signal unless it is there already; returns the exit status."""
    if not _told and os.getpid() == _process:
        _told.append(number)
        with contextlib.suppress(OSError):
            os.write(2, f"{before}{LINES[signal.Signals(number)]}\n".encode())
    return STATUS[signal.Signals(number)]


def end(number: int) -> NoReturn:
    """Ends the process on the spot, with the line and status of a signal; no file stays half
    written."""
    for _ in range(2):  # a thread may have begun another one meanwhile
        for path in list(unfinished) if os.getpid() == _process else ():
            with contextlib.suppress(OSError):
                path.unlink()
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    status = tell(number, "\n" if getattr(bars, "_instances", None) else "")
    os._exit(status)


def _leave() -> None:
    """The last thing Python does at exit (the first that was registered).

    After a signal it ends here: the end of the interpreter would abort threads of C code that still
    run. Else signals come too late from here on.
    """
    if _told:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(STATUS[signal.Signals(_told[0])])
    for number in STATUS:
        signal.signal(number, signal.SIG_IGN)


def _once_more(hook: Callable, received: list[int], timers: list[threading.Timer]) -> Callable:
    """`sys.unraisablehook` that sends a signal again whose exception went nowhere; the timers that
    do so are added to `timers`.

    Python prints and forgets what is raised while objects are collected: in a callback of the
    collector (JAX has one) or in what an object does at its end.
    """
    signals = {kind: number for number, kind in EXCEPTIONS.items()}

    def again(unraisable):
        if unraisable.exc_type not in signals:
            hook(unraisable)
            return
        received.clear()
        what = os.getpid(), signals[unraisable.exc_type]
        timers.append(threading.Timer(0.05, os.kill, what))  # the collection is over then
        timers[-1].start()

    return again
