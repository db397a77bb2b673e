"""Typed rows of a JSON list: the one reader of annotations and of results.

A value is read where its meaning is clear, however it was written ("5" and 5.0 as an id, "0.9" as
a score, "false" as a flag), and else refused with the file, the entry and the field. Whole columns
are checked at once by NumPy; rows are walked one by one only where a column is not plain, to mend a
value or to name the entry.
"""

import itertools
import numbers
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weaksam_jax.errors import BadInput

LARGEST_ID = 2**63 - 1  # int64
_EXACT = 2.0**53  # beyond it a double does not hold every integer
# Pixels: beyond any image, and small enough that the area of a box is a plain number.
LARGEST_COORDINATE = 2.0**31
HINT = "correct it where it was made"

_INTEGER = re.compile(r"[+-]?[0-9]{1,99}(\.0*)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]{1,400}(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?", re.ASCII)
_FLAGS = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 40
_NEEDED: Any = object()

Bad = Callable[[str, str], BadInput]  # (problem, hint) -> the error, which names the file


def shown(value: Any) -> str:
    """A value as a message names it: short, whatever it is, as JSON writes the plain ones."""
    names = {None: "null", True: "true", False: "false"}
    return names[value] if value is None or isinstance(value, bool) else _SHORT.repr(value)


def as_integer(value: Any) -> int:
    """An id, a side or a count: 0 to `LARGEST_ID`. `ValueError` says what it is instead."""
    text = value.strip() if isinstance(value, str) else ""
    if _INTEGER.fullmatch(text):
        found = int(text.partition(".")[0])
    elif _is_integer(value):
        found = int(value)
    else:
        raise ValueError(f"is no integer ({shown(value)})")
    if not 0 <= found <= LARGEST_ID:
        raise ValueError(f"is {'negative' if found < 0 else 'beyond 64 bits'} ({shown(value)})")
    return found


def as_number(value: Any) -> float:
    """A finite number. `ValueError` says what it is instead."""
    if _is_number(value) or (isinstance(value, str) and _NUMBER.fullmatch(value.strip())):
        try:
            found = float(value)
        except OverflowError:
            found = np.inf
        if np.isfinite(found):
            return found
    raise ValueError(f"is no finite number ({shown(value)})")


def _is_integer(value: Any) -> bool:
    if isinstance(value, float):
        return value % 1 == 0 and abs(value) <= _EXACT
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def as_flag(value: Any) -> bool:
    """Yes or no. `ValueError` for what is neither."""
    text = value.strip().lower() if isinstance(value, str) else None
    if text in _FLAGS:
        return _FLAGS[text]
    if isinstance(value, bool | numbers.Real) and value in (0, 1):
        return bool(value)
    raise ValueError(f"is neither 0 nor 1 ({shown(value)})")


def as_text(value: Any) -> str:
    """A name; an integer is one, too. `ValueError` for anything else, and for no character."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str):
        raise ValueError(f"is no text ({shown(value)})")
    if not text.strip():
        raise ValueError("is empty")
    return text


def as_box(value: Any) -> list[float]:
    """`[x, y, width, height]`: four finite numbers, not beyond `LARGEST_COORDINATE`."""
    if not isinstance(value, list | tuple | np.ndarray) or len(value) != 4:
        raise ValueError(f"is no [x, y, width, height] of finite numbers ({shown(value)})")
    try:
        box = [as_number(one) for one in value]
    except ValueError as error:
        raise ValueError(f"is no [x, y, width, height] of finite numbers: one {error}") from error
    if max(map(abs, box)) > LARGEST_COORDINATE:
        raise ValueError(f"lies absurdly far from any image ({shown(value)})")
    if min(box[2:]) < 0:
        raise ValueError(f"is inverted ({shown(value)})")
    return box


@dataclass(frozen=True)
class Row:
    """One object of a list. entry: its name in messages, as `annotations[3]`."""

    values: Mapping
    entry: str
    bad: Bad

    def fail(self, problem: str, hint: str = HINT) -> BadInput:
        """The error that names file and entry."""
        return self.bad(f"{self.entry}: {problem}", hint)

    def read(self, name: str, convert: Callable[[Any], Any], default: Any = _NEEDED) -> Any:
        """The value of a field, by a function that raises `ValueError` with what is wrong.

        default: what stands for a field that is missing or null; without it both are refused.
        """
        value = self.values.get(name)
        if value is None and default is not _NEEDED:
            return default
        if name not in self.values:
            raise self.fail(f"has no {name}", "write it")
        try:
            return convert(value)
        except ValueError as error:
            raise self.fail(f"{name} {error}") from error

    def integer(self, name: str, default: Any = _NEEDED) -> int:
        return self.read(name, as_integer, default)

    def number(self, name: str, default: Any = _NEEDED) -> float:
        return self.read(name, as_number, default)

    def text(self, name: str, default: Any = _NEEDED) -> str:
        return self.read(name, as_text, default)

    def flag(self, name: str, default: Any = _NEEDED) -> bool:
        return self.read(name, as_flag, default)

    def box(self, name: str) -> list[float]:
        return self.read(name, as_box)


@dataclass(frozen=True)
class Rows:
    """A list of objects, read by columns.

    values: the list, as JSON gives it. name: how messages call a row: `annotations` makes
    `annotations[3] (id 7)`, "" makes `entry 3`. bad: makes the error of a problem and a hint.
    mended: fields of which some value was read, but is not written plainly.
    """

    values: Sequence
    name: str
    bad: Bad
    first: int = 0

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self.values)))

    def __getitem__(self, index: int) -> Row:
        values, place = self.values[index], self.first + index
        entry = f"{self.name}[{place}]" if self.name else f"entry {place}"
        if not isinstance(values, Mapping):
            raise self.bad(f"{entry}: is no object ({shown(values)})", HINT)
        if self.name and "id" in values:
            entry += f" (id {shown(values['id'])})"
        return Row(values, entry, self.bad)

    def integers(self, name: str) -> np.ndarray:
        """int64 `[N]`, 0 to `LARGEST_ID`."""
        values = self.column(name, plain_integers, lambda row: row.integer(name))
        return np.asarray(values, np.int64)

    def numbers(self, name: str) -> np.ndarray:
        """float64 `[N]`, finite."""
        values = self.column(name, plain_numbers, lambda row: row.number(name))
        return np.asarray(values, np.float64)

    def flags(self, name: str) -> np.ndarray:
        """bool `[N]`; a field that is missing or null is False."""
        if not any(one is not None for one in self.raw(name)):
            return np.zeros(len(self), bool)
        values = self.column(name, _plain_flags, lambda row: row.flag(name, default=False))
        return np.asarray(values, bool)

    def texts(self, name: str) -> list[str]:
        """`N` texts that are not empty."""
        return self.column(name, _plain_texts, lambda row: row.text(name))

    def boxes(self, name: str) -> np.ndarray:
        """float64 `[N, 4]`: x, y, width, height; finite, width and height not negative."""
        values = self.column(name, plain_boxes, lambda row: row.box(name))
        return np.asarray(values, np.float64).reshape(-1, 4)

    def places(
        self,
        ids: Iterable[int],
        known: Mapping[int, int],
        unknown: Callable[[int], tuple[str, str]],
    ) -> np.ndarray:
        """int64 `[N]`: what `known` has for the id of each row. unknown: (problem, hint) of the row
        at a place whose id it lacks."""
        found = np.asarray([known.get(one, -1) for one in ids], np.int64)
        if (found < 0).any():
            index = int(np.argmax(found < 0))
            raise self[index].fail(*unknown(index))
        return found

    def raw(self, name: str) -> list:
        """The values as they are, None where there is none; every row is an object."""
        try:
            return [one.get(name) for one in self.values]
        except AttributeError:
            return [row.values.get(name) for row in self]

    def column(self, name: str, plain: Callable, one: Callable[[Row], Any]) -> Any:
        """`plain` of all values at once; where it is None, `one` of each row."""
        try:
            values = [row[name] for row in self.values]
        except (KeyError, TypeError, IndexError):
            values = None
        found = None if values is None else plain(values)
        if found is not None:
            return found
        return [one(row) for row in self]


def plain_integers(values: list) -> np.ndarray | None:
    """int64 `[N]` of values that all are integers `as_integer` takes as they are, else None."""
    found = _of_types(values, {int}, np.int64)
    if found is None or ((found >= 0) & (found <= LARGEST_ID)).all():
        return found
    return None


def plain_numbers(values: list) -> np.ndarray | None:
    """float64 `[N]` of values that all are finite numbers, else None."""
    found = _of_types(values, {int, float}, np.float64)
    return None if found is None or not np.isfinite(found).all() else found


def plain_boxes(values: list) -> np.ndarray | None:
    """float64 `[N, 4]` of values that `as_box` takes as they are, else None."""
    if not set(map(type, values)) <= {list} or not set(map(len, values)) <= {4}:
        return None
    found = plain_numbers(list(itertools.chain.from_iterable(values)))
    if found is None:
        return None
    found = found.reshape(-1, 4)
    fits = (np.abs(found) <= LARGEST_COORDINATE).all() and (found[:, 2:] >= 0).all()
    return found if fits else None


def _plain_texts(values: list) -> list[str] | None:
    plain = set(map(type, values)) <= {str} and all(map(str.strip, values))
    return values if plain else None


def _plain_flags(values: list) -> np.ndarray | None:
    found = _of_types(values, {int, bool}, np.int64)
    return found if found is not None and ((found == 0) | (found == 1)).all() else None


def _of_types(values: list, types: set[type], dtype: type) -> np.ndarray | None:
    if not set(map(type, values)) <= types:
        return None
    try:
        return np.asarray(values, dtype)
    except OverflowError:
        return None
