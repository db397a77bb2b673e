"""Progress bars on stderr. Their names may come from files: they never steer the terminal.

Every bar is made here. Imports neither jax nor torch.
"""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from weaksam_jax.errors import printable

Bar = tqdm


def progress_bar(items: Iterable | None, name: object, unit: str = "images", **more: Any) -> Bar:
    """A progress bar over `items` (None: it is moved by `update`), named as `printable` says.

    more: as `tqdm` takes it: total, initial, delay, disable, mininterval.
    """
    return tqdm(items, desc=printable(name), unit=unit, **more)


def say(text: object) -> None:
    """One line on stderr that leaves a running bar whole."""
    tqdm.write(printable(text), file=sys.stderr)


def close_bars() -> None:
    """A bar that was cut short ends its line, so that what is printed next is a line of its own."""
    for one in list(getattr(tqdm, "_instances", ())):
        one.close()
