"""`python -m experiments.bench [NAME]`: what a NAME stands for is imported when it is asked for.

Without a NAME `experiments.bench.pairs`, whose help lists the others.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

from experiments.bench.packages import check_packages
from weaksam_jax.cli import entry_point
from weaksam_jax.errors import BadInput


def suite(name: str, argv: Sequence[str]) -> None:
    """Runs a bench, with flags of its own."""
    import_module(f"experiments.bench.{name}").main(argv)


def card(argv: Sequence[str]) -> None:
    """The GPU card, on a machine that may have few of our packages."""
    check_packages("bench gpu")
    suite("gpu", argv)


SUITES: dict[str, Callable[[Sequence[str]], None]] = {
    "mil": partial(suite, "mil"),
    "tpu": partial(suite, "tpu"),
    "gpu": card,
    "growth": partial(suite, "growth"),
    "padding": partial(suite, "padding"),
}


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0].startswith("-"):
        return suite("pairs", argv)
    if argv[0] not in SUITES:
        raise BadInput("NAME", f"{argv[0]} is no bench", f"choose from {', '.join(SUITES)}")
    return SUITES[argv[0]](argv[1:])


if __name__ == "__main__":
    sys.exit(entry_point(main))
