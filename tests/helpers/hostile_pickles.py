"""Pickles that ask for what they must not get: by hand, and as mutants of good ones.

As a program (`python hostile_pickles.py SEED COUNT`): reads all of them in little memory and
prints how many were read and refused; anything else than that ends it.
"""

import io
import json
import pickle
import pickletools
import random
import resource
import struct
import sys
import time
from collections import OrderedDict

import numpy as np

from bridge.weights.machine import load
from bridge.weights.pickles import BROKEN, NUMPY

PLAIN_STATE = (3, "<", None, None, None, -1, -1, 0)
SPARE = 400 << 20  # bytes of memory that reading may take beyond what the program has


def value(x: object) -> bytes:
    """The instructions that make a plain value (without its memo)."""
    return pickletools.optimize(pickle.dumps(x, 2))[2:-1]


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def dtype(kind: str, state: object = PLAIN_STATE) -> bytes:
    call = name("numpy", "dtype") + b"(" + value(kind) + value(False) + value(True) + b"tR"
    return call + value(state) + b"b"


RECONSTRUCT = name("numpy.core.multiarray", "_reconstruct")
NO_ARRAY = RECONSTRUCT + b"(" + name("numpy", "ndarray") + value((0,)) + value("b") + b"tR"


def array(shape: object, kind: bytes, data: object, fortran: object = False) -> bytes:
    rest = value(shape) + kind + value(fortran) + value(data)
    return NO_ARRAY + b"(" + value(1) + rest + b"tb"


def _long(code: bytes, length: int) -> bytes:
    return b"\x80\x05" + code + struct.pack("<Q", length) + b"abc."


F8 = dtype("f8")
SHARE = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
REFUSED = {
    # The two of the report: the state of a dtype.
    "alignment": b"\x80\x03](" + 2 * dtype("f8", (3, "<", None, None, None, 8, 0, 0)) + b"e.",
    "huge item": b"\x80\x03](" + 2 * dtype("V8", (3, "|", None, None, None, 1 << 40, 1, 0)) + b"e.",
    "item size": b"\x80\x03" + dtype("f8", (3, "<", None, None, None, 1 << 40, 1, 0)) + b".",
    "void": b"\x80\x03" + dtype("V4000000000") + b".",
    "object dtype": array((1,), dtype("O8", (3, "|", None, None, None, -1, -1, 63)), [1]) + b".",
    "fields": b"\x80\x02" + dtype("f8", (3, "<", None, ("a",), {"a": 1}, -1, -1, 0)) + b".",
    "metadata": b"\x80\x02" + dtype("f8", (4, "<", None, None, None, -1, -1, 0, {})) + b".",
    "text dtype": b"\x80\x02" + dtype("U5", (3, "<", None, None, None, 20, 4, 8)) + b".",
    # Arrays of other shapes than their bytes.
    "many items": array((1 << 40,), F8, "") + b".",
    "no items of many": array((0, 1 << 62), F8, "") + b".",
    "negative": array((-1, -8), F8, 64 * "x") + b".",
    "overflow": array((1 << 32, 1 << 32), F8, "") + b".",
    "33 dimensions": array((1,) * 33, F8, 8 * "x") + b".",
    "shape of fractions": array((1.0,), F8, 8 * "x") + b".",
    "list as shape": array([1], F8, 8 * "x") + b".",
    "list as bytes": array((1,), F8, [1]) + b".",
    "no dtype": array((1,), value("f8"), 8 * "x") + b".",
    "wide characters": array((1,), F8, 8 * "\u0100") + b".",
    "another class": RECONSTRUCT + b"(" + name("os", "system") + value((0,)) + value("b") + b"tR.",
    "without state": b"\x80\x02" + NO_ARRAY + b".",
    "state again": array((1,), F8, 8 * "x") + value((1, (1 << 40,), None, False, "")) + b"b.",
    "scalar": name("numpy.core.multiarray", "scalar") + b"(" + F8 + value("abc") + b"tR.",
    "array of no dtype": name("numpy", "ndarray") + b")R.",
    # Lengths that the file does not have.
    **{f"length {code}": _long(code, 1 << 62) for code in (b"\x8e", b"\x8d", b"\x96")},
    "length beyond 64 bits": _long(b"\x8e", (1 << 64) - 1),
    "bytes": b"\x80\x03B" + struct.pack("<I", 0xF0000000) + b"abc.",
    "integer": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\1.",
    "long integer": b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\1" * 10**6 + b".",
    "digits": b"I" + b"9" * 10**6 + b"\n.",
    # Depth, sharing, floods.
    "deep lists": b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * 10**6 + b".",
    "deep dicts": b"\x80\x02" + b"}N" * 10**5 + b"N" + b"s" * 10**5 + b".",
    "deep key": b"\x80\x02})" + b"\x85" * 10**6 + b"Ns.",
    "2**60 values": b"\x80\x02]q\0" + SHARE + b".",
    "one array often": b"\x80\x02](" + array((10**6,), dtype("u1"), "a" * 10**6) + b"q\5"
    + b"h\5" * 10**5 + b"e.",
    "copies": b"](" + name("_codecs", "encode") + b"q\0" + value(("a" * 10**6, "latin1")) + b"q\1R"
    + b"h\0h\1R" * 5000 + b"e.",
    "copies of a dict": b"](" + name("collections", "OrderedDict") + b"q\0"
    + value((dict.fromkeys(range(10**5)),)) + b"q\1R" + b"h\0h\1R" * 1000 + b"e.",
    "in itself": b"\x80\x02]q\0h\0a.",
    "in itself by name": b"\x80\x02}q\0Nh\0s.",
    "marks": b"\x80\x02" + b"(" * 10**6 + b".",
    "9 million": b"\x80\x02" + b"N" * 9 * 10**6 + b".",
    # Calls, names and instructions that are none of ours.
    "call": name("os", "system") + value(("id",)) + b"R.",
    "instance": b"(ios\nsystem\n.",
    "object": b"(cos\nsystem\nS'id'\no.",
    "new": name("numpy", "ndarray") + b")\x81.",
    "new with names": b"\x80\x04" + name("numpy", "ndarray") + b")}\x92.",
    "dotted": name("numpy", "ndarray.tofile") + b")R.",
    "state of a class": name("numpy", "ndarray") + b"}b.",
    "state of a dtype's memo": b"](" + name("numpy", "dtype") + value(("f8", 0, 1)) + b"Rq\5h\5"
    + value(PLAIN_STATE) + b"be.",
    "extension": b"\x80\x02\x82\1.",
    "persistent": b"\x80\x02NQ.",
    "persistent text": b"Pabc\n.",
    "twice": b"\x80\x02]2a.",
    "buffer": b"\x80\x05\x97.",
    "no text as name": b"\x80\x04K\1K\2\x93.",
    "codec": name("_codecs", "encode") + value(("abc", "zip")) + b"R.",
    "escape": b"c\x1b[31m\nx\n.",
    "long name": b"c" + b"a" * 10**6 + b"\nb\n.",
    "empty": b"",
    "text": b"hello\n",
}  # fmt: skip


def good() -> list[bytes]:
    """Pickles of every protocol of what proposal and weight files hold."""
    boxes = [np.arange(8, dtype="u2").reshape(2, 4), np.zeros((0, 4)), np.ones((3, 4), ">f4").T]
    mist = {"boxes": boxes, "scores": [np.ones(2)], "indexes": [1, np.int64(2), 10**9]}
    axes = np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2)
    values = (mist, boxes, OrderedDict(a=axes, b=(1.5, "é", b"x", [None, True], 10**18)))
    return [pickle.dumps(one, protocol) for protocol in range(6) for one in values]


def mutants(seed: int, count: int):
    """Good and hostile ones with bytes flipped, changed, taken out, and parts of others put in."""
    rng = random.Random(seed)
    starts = good() + [data for data in REFUSED.values() if 0 < len(data) < 2000]
    codes = [one.code.encode("latin1") for one in pickletools.opcodes]
    for _ in range(count):
        data = bytearray(rng.choice(starts))
        for _ in range(rng.choice((1, 1, 2, 4, 8))):
            place, other = rng.randrange(len(data) + 1), rng.choice(starts)
            start = rng.randrange(len(other))
            old = data[place : place + 1]
            part = {
                "flip": bytes(one ^ 1 << rng.randrange(8) for one in old),
                "byte": bytes([rng.randrange(256)]),
                "code": rng.choice(codes),
                "more": rng.choice(codes) + old,
                "gone": b"",
                "part": old + other[start : start + rng.randrange(40)],
            }
            data[place : place + 1] = part[rng.choice(list(part))]
        yield bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data)


def read(data: bytes) -> tuple[str, object]:
    try:
        return "read", load(io.BytesIO(data), len(data), NUMPY.get)
    except BROKEN as error:
        return "refused", error


def main(seed: int, count: int) -> None:
    with open("/proc/self/statm") as file:
        most = int(file.read().split()[0]) * resource.getpagesize() + SPARE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    result = {"read": 0, "refused": 0, "slowest": 0.0, "wrong": []}
    for what, data in REFUSED.items():
        if (found := read(data))[0] == "read" or isinstance(found[1], MemoryError):
            result["wrong"].append(what)
    for data in mutants(seed, count):
        start = time.process_time()
        found, error = read(data)
        result[found] += 1
        result["wrong"] += ["memory"] if isinstance(error, MemoryError) else []
        result["slowest"] = max(result["slowest"], time.process_time() - start)
    print(json.dumps(result))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
