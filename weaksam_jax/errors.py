"""Exceptions for input that a user can mend."""

import difflib
import unicodedata
from collections.abc import Iterable
from pathlib import Path

# Characters that steer a terminal: control characters (ANSI escapes start with one), line and
# paragraph separators, halves of surrogate pairs; and those that turn the direction of writing.
_STEERING = {"Cc", "Zl", "Zp", "Cs"}
_TURNING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: object) -> str:
    """A text as it may reach a terminal: what steers one is written as an escape, `\\x1b`.

    For every name from a file (images, classes, splits) that a command prints.
    """
    return "".join(_escaped(one) for one in str(text))


def _escaped(one: str) -> str:
    if one.isprintable() or (unicodedata.category(one) not in _STEERING and one not in _TURNING):
        return one
    return one.encode("unicode_escape").decode("ascii")


class BadInput(Exception):
    """Bad input: one line that names the file, what is wrong and the hint.

    What steers a terminal is escaped in its text (`printable`). Entry points print it to stderr and
    end with exit status 2 (`weaksam_jax.cli.entry_point`).
    """

    def __init__(self, path: str | Path, problem: str, hint: str):
        self.path, self.problem, self.hint = str(path), problem, hint
        super().__init__(printable(f"{path}: {problem}; {hint}".replace("\n", " ")))


class BadFile(BadInput):
    """A file (file: its path) is missing, not whole, or does not hold what it should."""

    def __init__(self, file: str | Path, problem: str, hint: str):
        self.file = Path(file)
        super().__init__(file, problem, hint)


class BadSetting(BadInput):
    """A name or value in a file of settings does not fit (field: its dotted name in the file)."""

    def __init__(self, path: str | Path, field: str, problem: str, hint: str):
        self.field = field
        super().__init__(path, f"{field} {problem}".lstrip(), hint)


def did_you_mean(name: str, known: Iterable[str], other: str) -> str:
    """The hint "did you mean X" with the nearest of `known`; `other` when none is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {found[0]}?" if found else other
