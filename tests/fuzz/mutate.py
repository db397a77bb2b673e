"""Mutations of bytes, texts, JSON values and images. Each is a function of a random generator."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

# Values that a field of another type may hold in people's files.
ODD = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, 10**400, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), float("-inf")),
    *("", " ", "0", "1", "-1", "1.5", "nan", "true", "False", "yes", "null", "a", "../x", "/etc/x"),
    *("\x1b[31mred", "a\x00b", "a\nb", "ü", "😀", "a" * 5000),
    *([], {}, [1], [[]], {"a": 1}, [None], [float("nan")] * 4, [0, 0, 0, 0], [1, 2, 3]),
)


def json_value(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value, changed in one to three places."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return rng.choice(ODD)
        holder, key = rng.choice(places)
        rng.choice(CHANGES)(holder, key, rng)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of everything inside a JSON value."""
    keys = (
        range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
    )
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


def _odd(holder: Any, key: Any, rng: random.Random) -> None:
    holder[key] = copy.deepcopy(rng.choice(ODD))


def _gone(holder: Any, key: Any, rng: random.Random) -> None:
    del holder[key]


def _twice(holder: Any, key: Any, rng: random.Random) -> None:
    if isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    else:
        holder[rng.choice(("caption", "score", "bbox", "extra", key + " "))] = holder[key]


def _as_text(holder: Any, key: Any, rng: random.Random) -> None:
    value = holder[key]
    holder[key] = value if isinstance(value, str) else json.dumps(value)


def _nudged(holder: Any, key: Any, rng: random.Random) -> None:
    value = holder[key]
    if isinstance(value, int | float) and not isinstance(value, bool):
        holder[key] = rng.choice((value + 1, -value, value * 1000, value + 0.25, float(value)))
    else:
        _odd(holder, key, rng)


def _swapped(holder: Any, key: Any, rng: random.Random) -> None:
    keys = list(range(len(holder)) if isinstance(holder, list) else holder)
    other = rng.choice(keys)
    holder[key], holder[other] = holder[other], holder[key]


def _nested(holder: Any, key: Any, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 2, 50, 2000))):
        holder[key] = [holder[key]]


CHANGES = (_odd, _odd, _gone, _twice, _as_text, _nudged, _nudged, _swapped, _nested)


def json_text(value: Any, rng: random.Random) -> bytes:
    """A mutated JSON value as a file; at times its text is mutated too."""
    try:
        text = json.dumps(json_value(value, rng), indent=rng.choice((None, 1)))
    except (RecursionError, ValueError):
        text = "[" * 100_000
    return raw(text.encode(), rng) if rng.random() < 0.25 else encoded(text, rng)


def encoded(text: str, rng: random.Random) -> bytes:
    """A text in one of the encodings that editors write."""
    names = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030", "shift_jis")
    try:
        return text.encode(rng.choice(names), errors="surrogatepass")
    except (UnicodeError, LookupError):
        return text.encode("utf-8", errors="replace")


def same_text(text: str, rng: random.Random) -> bytes:
    """A text of the same meaning: line ends, byte order marks, an empty line at the end."""
    text = text.replace("\n", rng.choice(("\n", "\r\n", "\r\n")))
    text += rng.choice(("", "\n", "\n\n"))
    return text.encode(rng.choice(("utf-8", "utf-8-sig", "utf-16")))


def raw(data: bytes, rng: random.Random) -> bytes:
    """Bytes with flips, a cut, an insertion, a repeated or removed part."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(out) + 1)
        rng.choice(_RAW)(out, at, rng)
    return bytes(out)


def _flip(out: bytearray, at: int, rng: random.Random) -> None:
    if at < len(out):
        out[at] ^= 1 << rng.randrange(8)


def _cut(out: bytearray, at: int, rng: random.Random) -> None:
    del out[at:]


def _insert(out: bytearray, at: int, rng: random.Random) -> None:
    out[at:at] = rng.choice((b"\0", b"\xff", b"\xef\xbb\xbf", b"\x1b[2J", b"9" * 400, b"\n", b'"'))


def _repeat(out: bytearray, at: int, rng: random.Random) -> None:
    out[at:at] = out[at : at + rng.randrange(1, 200)] * rng.choice((1, 1, 50))


def _remove(out: bytearray, at: int, rng: random.Random) -> None:
    del out[at : at + rng.randrange(1, 50)]


_RAW: tuple[Callable[[bytearray, int, random.Random], None], ...] = (
    *(_flip, _flip, _cut, _insert, _repeat, _remove),
)


def text_fields(text: str, rng: random.Random, separator: str = ",") -> str:
    """A table of text (CSV, an image list) with one field, row or separator changed."""
    rows = [line.split(separator) for line in text.splitlines()]
    row = rng.choice(rows)
    index = rng.randrange(len(row))
    change = rng.randrange(6)
    if change < 3:
        odd = [one for one in ODD if isinstance(one, str)]
        row[index] = rng.choice((*odd, f" {row[index]} ", f'"{row[index]}"', row[index] * 2))
    elif change == 3:
        del row[index]
    elif change == 4:
        row.insert(index, rng.choice(row))
    else:
        rows.insert(rng.randrange(len(rows) + 1), list(rng.choice(rows)))
    return "\n".join(separator.join(row) for row in rows) + "\n"
