"""Command lines of functions: flags from signatures and docstrings, usage errors in one line."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import get_type_hints

import tyro

from weaksam_jax.flags import call_tyro, check_known


def run_command(
    command: Callable[..., None] | Mapping[str, Callable[..., None]],
    argv: Sequence[str] | None,
    prog: str,
    about: str,
) -> None:
    """Calls `command` (of several by name: the one named first) with what `argv` says.

    Flags are the function's arguments, their help its docstring's `Args`; `about` begins `--help`.
    Raises `BadInput` for wrong arguments, and SystemExit(0) for --help.
    """
    argv = sys.argv[1:] if argv is None else argv
    if callable(command):
        names, asked, parse = flags_of(command), _postponed(command), tyro.cli
    else:
        names = {flag for one in command.values() for flag in flags_of(one)}
        asked = {name: _postponed(one) for name, one in command.items()}
        parse = tyro.extras.subcommand_cli_from_dict
    check_known(argv, {*names, "help"}, f"see {prog} --help")
    call_tyro(lambda doc: parse(asked, args=argv, prog=prog, description=doc), about, prog)()


def flags_of(command: Callable[..., None]) -> set[str]:
    """The flags of a function's arguments, without dashes."""
    found = set()
    for name, hint in get_type_hints(command, include_extras=True).items():
        marks = [getattr(mark, "name", None) for mark in getattr(hint, "__metadata__", ())]
        own = next(filter(None, marks), name).replace("_", "-")
        found |= {own, f"no-{own}"} if hint is bool else {own}
    return found - {"return"}


def _postponed(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """`command` with its signature, returning the call instead of making it."""

    @functools.wraps(command)
    def bind(*values, **named):
        return functools.partial(command, *values, **named)

    return bind
