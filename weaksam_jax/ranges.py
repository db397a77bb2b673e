"""What values a setting may have: said in its type, checked as soon as there is a value.

    @dataclass(frozen=True)
    class OptimConfig(Settings):
        lr: Positive = 0.02
        milestones: Annotated[tuple[Steps, ...], RISING] = ()

Every number must be finite, even where nothing else is said. Imports neither jax nor torch.
"""

import contextlib
import os
import reprlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, is_dataclass
from functools import cache
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from weaksam_jax.errors import BadSetting

# The plain types of settings in words.
WANTED = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
}
_POSTPONED = ContextVar("postponed", default=False)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


@dataclass(frozen=True)
class Rule:
    """What a value must fulfil beside its type; wanted: the same in words."""

    holds: Callable[[Any], bool]
    wanted: str


class Fault(NamedTuple):
    """A value that does not fit. field: its dotted name ("": the value itself)."""

    field: str
    problem: str
    hint: str

    def within(self, name: str) -> "Fault":
        """The same, as seen from what has the value in its field `name`."""
        return self._replace(field=f"{name}.{self.field}".rstrip("."))


class Settings:
    """Base of dataclasses whose values are checked when they are made: `BadSetting` names the
    dataclass, the field and what it may be."""

    def __post_init__(self) -> None:
        check(self)

    def misfits(self) -> Iterator[Fault]:
        """Values that do not fit together, though each one has its range."""
        return iter(())


def check(config: Any) -> None:
    """`BadSetting` when a value of a dataclass does not fit; nothing inside of `unchecked`."""
    if not _POSTPONED.get() and (fault := first_fault(type(config), config)):
        raise BadSetting(type(config).__name__, *fault)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Settings made inside are not checked: the caller does it when it knows their full names."""
    before = _POSTPONED.set(True)
    try:
        yield
    finally:
        _POSTPONED.reset(before)


def between(low: float, high: float, kind: str = "a number") -> Rule:
    """From `low` to `high`, both among them."""
    return Rule(lambda value: low <= value <= high, f"{kind} from {low:g} to {_plain(high)}")


def above(low: float, high: float) -> Rule:
    """More than `low`, at most `high`."""
    return Rule(lambda v: low < v <= high, f"a number above {low:g}, at most {_plain(high)}")


def below(low: float, high: float) -> Rule:
    """From `low` on, less than `high`."""
    return Rule(lambda v: low <= v < high, f"a number from {low:g} on, below {high:g}")


def integers(low: int, high: int) -> Rule:
    """Integers from `low` to `high`, both among them."""
    return between(low, high, "an integer")


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


# Names of types that many settings have.
Share = Annotated[float, between(0, 1)]
Rate = Annotated[float, below(0, 1)]  # of what is dropped: not everything
Positive = Annotated[float, above(0, 1_000_000)]
Scaling = Annotated[float, between(0.01, 100)]  # a factor of sizes
Amount = Annotated[float, between(0, 1_000_000)]
Count = Annotated[int, integers(1, 1_000_000)]
Batch = Annotated[int, integers(1, 4096)]
Width = Annotated[int, integers(1, 65_536)]
Side = Annotated[int, integers(1, 8192)]  # pixels
Steps = Annotated[int, integers(1, 1_000_000_000)]
StepsOrNone = Annotated[int, integers(0, 1_000_000_000)]
Workers = Annotated[int, integers(0, 256)]
Pixels = Annotated[float, between(0, 100_000)]
Power = Annotated[float, between(0, 100)]
Layers = Annotated[int, integers(1, 1024)]
Seed = Annotated[int, integers(0, 2**32 - 1)]  # what NumPy, torch, jax and scikit-learn all take

# Rules of tuples.
FILLED = Rule(lambda values: 1 <= len(values) <= 1000, "at least one entry, at most 1,000")
Item = TypeVar("Item")
Filled = Annotated[tuple[Item, ...], FILLED]
RISING = Rule(lambda values: all(a < b for a, b in pairwise(values)), "rising values")
INTERVAL = Rule(lambda values: values[0] <= values[1], "the lower end first")


def first_fault(hint: Any, value: Any) -> Fault | None:
    """The first thing in `value` that does not fit the type `hint`; None when all fits.

    hint: numbers, text, `Literal`, unions, tuples and dataclasses of these, with a `Rule` in
    `Annotated`; anything else fits.
    """
    return next(_faults(hint, value), None)


def _faults(hint: Any, value: Any) -> Iterator[Fault]:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        yield from _annotated(inner[0], [one for one in inner[1:] if isinstance(one, Rule)], value)
    elif origin in (Union, UnionType):
        yield from _union(inner, value)
    elif origin is Literal:
        if not any(value == one and type(value) is type(one) for one in inner):
            yield _fault(value, f"choose from {', '.join(map(str, inner))}")
    elif origin is tuple:
        yield from _tuple(inner, value)
    elif is_dataclass(hint):
        yield from _dataclass(hint, value)
    elif hint in WANTED and not _is(hint, value):
        yield _fault(value, f"give {WANTED[hint]}")
    elif hint in (str, Path) and not is_utf8(str(value)):
        yield Fault("", f"is {shown(str(value))}, which is not UTF-8", "rename the folder or file")


def _fault(value: Any, hint: str) -> Fault:
    return Fault("", f"is {shown(value)}", hint)


def _is(kind: type, value: Any) -> bool:
    """Whether a value is of a plain type: a boolean is no number, and a number is finite."""
    if kind is bool:
        return isinstance(value, bool)
    if kind in (str, Path):
        return isinstance(value, str | kind) and _is_text(str(value))
    if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
        return False
    return abs(value) <= sys.float_info.max


def is_utf8(value: str) -> bool:
    """Whether a text, such as a path, can be written into a file: no byte of it is outside of
    UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_text(value: str) -> bool:
    """Whether the operating system can take it, too (no NUL, no half of a character)."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _annotated(kind: Any, rules: list[Rule], value: Any) -> Iterator[Fault]:
    found = list(_faults(kind, value))
    if found and kind in (int, float) and rules:
        found = [one._replace(hint=f"give {rules[0].wanted}") for one in found]
    yield from found or (_fault(value, f"give {r.wanted}") for r in rules if not r.holds(value))


def _union(kinds: tuple, value: Any) -> Iterator[Fault]:
    """Of the kind that the value is of, else of the first that is not None."""
    if value is None and type(None) in kinds:
        return
    kinds = [one for one in kinds if one is not type(None)]
    if all(first_fault(one, value) for one in kinds):
        own = [one for one in kinds if is_dataclass(one) and isinstance(value, one)]
        yield from _faults((own or kinds)[0], value)


def _tuple(kinds: tuple, value: Any) -> Iterator[Fault]:
    if not isinstance(value, list | tuple):
        yield _fault(value, "give a list")
        return
    kinds = kinds[:1] * len(value) if kinds[1:] == (Ellipsis,) else kinds
    if len(kinds) != len(value):
        yield _fault(value, f"give {len(kinds)} entries")
        return
    for place, (kind, one) in enumerate(zip(kinds, value, strict=True)):
        yield from (fault.within(str(place)) for fault in _faults(kind, one))


def _dataclass(kind: type, value: Any) -> Iterator[Fault]:
    if not isinstance(value, kind):
        yield _fault(value, f"give a {kind.__name__}")
        return
    parts = ((name, hint, getattr(value, name)) for name, hint in hints_of(type(value)).items())
    found = [fault.within(name) for name, hint, one in parts for fault in _faults(hint, one)]
    own = isinstance(value, Settings) and not found
    yield from value.misfits() if own else found


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields with what `Annotated` says of them."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in kind.__dataclass_fields__}


def shown(value: Any) -> str:
    """A value in an error: short and on one line, whatever it is."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a huge integer"
    return _SHORT.repr(value)
