"""What several readers check."""

from collections.abc import Hashable, Iterable
from pathlib import Path

from weaksam_jax.errors import BadInput


def read_classes(path: Path) -> tuple[str, ...] | None:
    """Class names of a `classes.txt` (one per line, in the order of ids); None without it.

    Raises `BadInput` when it names no class, or one twice, or is no UTF-8 text.
    """
    if not path.exists():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(path, f"cannot be read ({error})", "save it as UTF-8 text") from error
    names = tuple(line.strip() for line in lines if line.strip())
    twice = first_duplicate(names)
    if twice is not None or not names:
        problem = "names no class" if twice is None else f"names class {twice} twice"
        raise BadInput(path, problem, "write one class name per line")
    return names


def first_duplicate(values: Iterable[Hashable]) -> Hashable | None:
    """The first value that occurs a second time, or None."""
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
