"""What a program consists of, read from the text of its optimised HLO.

Times and counts are those of one run: an instruction in a loop counts once per turn of the loop.
How often a loop turns the compiler says (`known_trip_count`), or its condition does (counted from 0
to a constant); else it is assumed by what the loop does (`Assumed`).
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

# How often a loop turns that only the data end, from the names of the functions it is in.
Assumed = Callable[[str], int]
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
HOST = ("infeed", "outfeed", "send", "recv")  # instructions that need the host while they run
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8}
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")


@dataclass(frozen=True)
class Loop:
    """A loop of a program: the functions it is in, turns, whether the program says so, and how
    often the whole loop is run."""

    source: str
    turns: int
    known: bool
    times: int


@dataclass(frozen=True)
class Reading:
    """cycles: the compiler's estimates by (operation, instruction, functions it is in); loops: all
    of them; collectives: "n" and "bytes"; operations: how many instructions of each kind run;
    host_calls: instructions that go to the host."""

    cycles: Counter = field(default_factory=Counter)
    loops: list[Loop] = field(default_factory=list)
    collectives: Counter = field(default_factory=Counter)
    operations: Counter = field(default_factory=Counter)
    host_calls: list[str] = field(default_factory=list)


def read(text: str, assumed: Assumed) -> Reading:
    """The text of a compiled program (`jax.stages.Compiled.as_text`) -> what it consists of."""
    bodies, found = computations(text), Reading()
    _visit("ENTRY", 1, (bodies, assumed, found))
    return found


def computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation by its name; that of the program is "ENTRY"."""
    bodies: dict[str, list[str]] = {}
    name = None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and line.endswith("{"):
            name = "ENTRY" if line.startswith("ENTRY") else line.split()[0].lstrip("%")
            bodies[name] = []
        elif name and " = " in line:
            bodies[name].append(line)
    return bodies


def bytes_of(kind: str) -> int:
    """Bytes of all arrays in an HLO type."""
    arrays = re.findall(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]", kind)
    counts = (math.prod(map(int, filter(None, sides.split(",")))) for _, sides in arrays)
    sizes = (_BYTES.get(one, 4) for one, _ in arrays)
    return sum(size * count for size, count in zip(sizes, counts, strict=True))


def _visit(name: str, times: int, walk: tuple[dict, Assumed, Reading]) -> None:
    bodies, _, found = walk
    for line in bodies.get(name, ()):
        if not (parts := _INSTRUCTION.match(line)):
            continue
        label, kind, op = parts.groups()
        source = _first(r'op_name="([^"]*)"', line)
        if cost := _first(r'"estimated_cycles":"(\d+)"', line):
            found.cycles[(op, label, source)] += int(cost) * times
        _count(found, op, (kind, line), times=times)
        for inner, turns in _inside(line, op, source, at=(walk, times)):
            _visit(inner, times * turns, walk)


def _count(found: Reading, op: str, written: tuple[str, str], times: int) -> None:
    kind, line = written
    found.operations[op] += times
    if op.removesuffix("-start") in COLLECTIVES:
        found.collectives["n"] += times
        found.collectives["bytes"] += bytes_of(kind) * times
    target = _first(r'custom_call_target="([^"]+)"', line)
    if op.removesuffix("-start") in HOST or "callback" in target.lower():
        found.host_calls.append(target or op)


def _inside(line: str, op: str, source: str, at: tuple) -> Iterator[tuple[str, int]]:
    """The computations that an instruction runs, and how often each."""
    (bodies, assumed, found), times = at
    if op == "while":
        known = _first(r'known_trip_count":\{"n":"(\d+)"', line) or _counted(bodies, line)
        turns = int(known) if known else assumed(source)
        found.loops.append(Loop(source, turns, bool(known), times=times))
        yield _first(r"body=%([\w.\-]+)", line), turns
    elif op in ("call", "conditional", "async-start"):
        for one in re.findall(r"(?:to_apply|calls)=%([\w.\-]+)", line):
            yield one, 1


def _counted(bodies: dict[str, list[str]], line: str) -> str:
    """N of a loop whose condition is counter < N, "" of another."""
    condition = bodies.get(_first(r"condition=%([\w.\-]+)", line), [])
    root = next((one for one in condition if one.lstrip().startswith("ROOT")), "")
    limit = _first(r" compare\([^%]*%[\w.\-]+, [^%]*%([\w.\-]+)\), direction=LT", root)
    found = next((one for one in condition if limit and f"%{limit} = " in one), "")
    return _first(r" constant\((\d+)\)", found)


def _first(pattern: str, line: str) -> str:
    found = re.search(pattern, line)
    return found.group(1) if found else ""
