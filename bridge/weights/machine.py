"""A reader of pickles that builds plain values and calls nothing but functions of a given table.

Pickle is a program for a machine with a stack: it may call any function, set any object's state,
and ask for far more memory than its file has bytes. This machine knows the instructions that lists,
dicts, tuples, texts and numbers need; names in the file lead to functions of ours only
(`Known.call`), which check what they are given, and state goes to objects of ours only (`Unbuilt`).
The number of instructions, the depth, and how often values are shared are limited, so that time
and memory are.
"""

import codecs
import pickletools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from mmap import mmap
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np

# An instruction is a byte at least and makes some 100 bytes at most beside its own.
MOST_INSTRUCTIONS = 2**23
# Values, counted once for every way that leads to them (a list that holds another twice, and that
# another twice, and so on, has 2**n): so many in any file, and so many more a byte.
ANYWAY, SHARING = 2**20, 16
# Items and characters that are handed to functions, which may copy them.
HANDED = 4
MOST_BITS = 128  # of an integer
DEPTH = 64
# Modules that changed their names: numpy 2, Python 3.
RENAMED = {"numpy._core.": "numpy.core.", "__builtin__.": "builtins.", "copy_reg.": "copyreg."}


@dataclass(frozen=True)
class Known:
    """A name that a file may use; call: ours in its place, None for what is not called."""

    name: str
    call: Callable[..., Any] | None = None


@dataclass
class Unbuilt:
    """An object whose content follows; places: where the memo has it."""

    places: list[int] = field(default_factory=list, init=False)

    def built(self, state: Any) -> Any:
        """What stands in its place when its content is there."""
        raise NotImplementedError


Find = Callable[[str], Known | None]  # what a dotted name, as it is called today, leads to
Load = Callable[[Any], Any]  # what an external identifier (of a storage) stands for


def shown(text: object) -> str:
    """A name of the file for one line of a message: printable, at most 80 characters."""
    plain = ascii(str(text)[:80])[1:-1]
    return plain if len(plain) <= 80 else plain[:77] + "..."


def load(file: BinaryIO | mmap, size: int, find: Find, load_id: Load | None = None) -> Any:
    """The value of the pickle at the place where `file` stands, which is then behind it.

    size: bytes of the file, for the limits. find: the names that it may use. Raises
    `pickle.UnpicklingError` or another error of `bridge.weights.pickles.BROKEN` for what is
    damaged, unknown or too large.
    """
    value = _Machine(find, load_id, left=ANYWAY + HANDED * size).run(file)
    _check_tree(value, ANYWAY + SHARING * size)
    return value


def _short(read: Callable[[BinaryIO], Any]) -> Callable[[BinaryIO], Any]:
    """A reader of integers that refuses very long ones."""

    def read_short(file: BinaryIO) -> Any:
        value = read(file)
        if value.bit_length() > MOST_BITS:
            raise UnpicklingError(f"it holds an integer of {value.bit_length()} bits")
        return value

    return read_short


def _text_line(file: BinaryIO) -> str:
    """Python 2's quoted bytes, one character each (`pickletools` reads ASCII alone)."""
    line = file.readline()
    quoted = line[:-1].strip(b" \t")
    if (
        line[-1:] != b"\n"
        or len(quoted) < 2
        or quoted[:1] not in b"'\""
        or quoted[-1:] != quoted[:1]
    ):
        raise UnpicklingError("it has a text without quotes")
    return codecs.escape_decode(quoted[1:-1])[0].decode("latin1")


class _Machine:
    """Stack and memo; a step for every instruction that is listed in `_STEPS`.

    left: items and characters that may still be handed to functions.
    """

    def __init__(self, find: Find, load_id: Load | None, left: int):
        self.find, self.load_id, self.left = find, load_id, left
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: BinaryIO | mmap) -> Any:
        """Takes one step an instruction up to STOP; refuses those that are not listed."""
        read = file.read
        for _ in range(MOST_INSTRUCTIONS):
            code = read(1)
            if code == b".":
                return self.pop()
            if code not in _INSTRUCTIONS:
                raise UnpicklingError(
                    f"it uses the instruction {code!r}" if code else "it ends early"
                )
            step, argument = _INSTRUCTIONS[code]
            if argument is None:
                step(self)
            else:
                step(self, argument(file))
        raise UnpicklingError(f"it has more than {MOST_INSTRUCTIONS} instructions")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise UnpicklingError("it takes from an empty stack")
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top()
        del self.stack[-1]
        return value

    def marked(self) -> list[Any]:
        """The values behind the last mark, no longer on the stack."""
        if not self.marks:
            raise UnpicklingError("it has no mark where one belongs")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(values[::-1]))

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise UnpicklingError("it appends to what is no list")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) is not dict or len(values) % 2:
            raise UnpicklingError("it sets items of what is no dict")
        fill_dict(target, zip(values[::2], values[1::2], strict=True))

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise UnpicklingError("it has a name that is no text")
        whole = f"{module}.{name}"
        for old, new in RENAMED.items():
            whole = new + whole.removeprefix(old) if module.startswith(old[:-1]) else whole
        known = self.find(whole)
        if known is None:
            raise UnpicklingError(f"it asks for {shown(f'{module}.{name}')}")
        self.push(known)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(function) is not Known or function.call is None or type(arguments) is not tuple:
            what = shown(function.name) if type(function) is Known else "what is no function"
            raise UnpicklingError(f"it calls {what}")
        self.hand(arguments)
        try:
            self.push(function.call(*arguments))
        except TypeError as error:
            problem = f"it calls {shown(function.name)} with other values than it takes"
            raise UnpicklingError(problem) from error

    def hand(self, values: tuple) -> None:
        self.left -= sum(len(one) for one in values if isinstance(one, _SIZED))
        if self.left < 0:
            raise UnpicklingError("it hands the same values to functions again and again")

    def build(self) -> None:
        """Attributes of an OrderedDict are passed over."""
        state, value = self.pop(), self.pop()
        if isinstance(value, Unbuilt):
            self.hand(state if type(state) is tuple else (state,))
            built = value.built(state)
            for place in value.places:
                if self.memo.get(place) is value:
                    self.memo[place] = built
            value = built
        elif type(value) is not dict:
            raise UnpicklingError("it sets the state of what has none")
        self.push(value)

    def put(self, place: int) -> None:
        value = self.memo[place] = self.top()
        if isinstance(value, Unbuilt):
            value.places.append(place)

    def get(self, place: int) -> None:
        if place not in self.memo:
            raise UnpicklingError("it takes from its memory what it never put there")
        self.push(self.memo[place])

    def load_by_id(self) -> None:
        if self.load_id is None:
            raise UnpicklingError("it refers to another file")
        self.push(self.load_id(self.pop()))


def fill_dict(target: dict, pairs: Iterable[tuple[Any, Any]]) -> dict:
    """`target` with these pairs; keys are texts and numbers (hashing others may recurse)."""
    for key, value in pairs:
        if type(key) not in (str, int, float, bytes, bool, type(None)):
            raise UnpicklingError(f"it has a {type(key).__name__} as a key")
        target[key] = value
    return target


def _check_tree(root: Any, most: int) -> None:
    """Refuses what contains itself, is nested too deep, or has too many values by way of sharing.

    Level by level, each container once a level with the number of ways that lead there.
    """
    below: dict[int, Iterable[Any]] = {0: [root]}
    ways, total = Counter({0: 1}), 0
    for _ in range(DEPTH):
        level, times_of, below, ways = below, ways, {}, Counter()
        for key, values in level.items():
            times = times_of[key]
            for value in values:
                total += times * (1 + (value.size if isinstance(value, np.ndarray) else 0))
                if isinstance(value, dict | list | tuple) and value:
                    ways[id(value)] += times
                    below[id(value)] = value.values() if isinstance(value, dict) else value
                elif isinstance(value, Unbuilt):
                    raise UnpicklingError("it has an object without its content")
        if total > most:
            raise UnpicklingError(f"its values are shared so often that they are over {most}")
        if not below:
            return
    raise UnpicklingError(f"its values are nested over {DEPTH} deep, or contain themselves")


def _dict(machine: _Machine) -> None:
    values = machine.marked()
    machine.push({})
    machine.set_items(values)


_SIZED = (str, bytes, bytearray, list, tuple, dict)
_INTEGERS = ("INT", "LONG", "LONG1", "LONG4", "PUT", "GET")
_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
)
# What each instruction does; those with an argument get it, too.
_STEPS: dict[str, Callable[..., Any]] = {
    "PROTO": lambda machine, number: None,
    "FRAME": lambda machine, length: None,
    **dict.fromkeys(_VALUES, _Machine.push),
    "NONE": lambda machine: machine.push(None),
    "NEWTRUE": lambda machine: machine.push(True),
    "NEWFALSE": lambda machine: machine.push(False),
    "EMPTY_LIST": lambda machine: machine.push([]),
    "EMPTY_DICT": lambda machine: machine.push({}),
    "EMPTY_TUPLE": lambda machine: machine.push(()),
    "MARK": lambda machine: machine.marks.append(len(machine.stack)),
    "LIST": lambda machine: machine.push(machine.marked()),
    "DICT": _dict,
    "TUPLE": lambda machine: machine.push(tuple(machine.marked())),
    "TUPLE1": lambda machine: machine.tuple_of(1),
    "TUPLE2": lambda machine: machine.tuple_of(2),
    "TUPLE3": lambda machine: machine.tuple_of(3),
    "APPEND": lambda machine: machine.append([machine.pop()]),
    "APPENDS": lambda machine: machine.append(machine.marked()),
    "SETITEM": lambda machine: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine: machine.set_items(machine.marked()),
    "GLOBAL": lambda machine, names: machine.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine: machine.name(*[machine.pop(), machine.pop()][::-1]),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.call),
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.load_by_id,
    "MEMOIZE": lambda machine: machine.put(len(machine.memo)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
}


def _reader(one: pickletools.OpcodeInfo) -> Callable[[BinaryIO], Any] | None:
    """What reads an instruction's argument; None: it has none."""
    if one.name == "STRING":
        return _text_line
    read = one.arg and one.arg.reader
    return _short(read) if one.name in _INTEGERS else read


_INSTRUCTIONS = {
    one.code.encode("latin1"): (_STEPS[one.name], _reader(one))
    for one in pickletools.opcodes
    if one.name in _STEPS
}
