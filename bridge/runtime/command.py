"""Command lines of functions: flags from signatures and docstrings, usage errors in one line."""

import contextlib
import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence

import tyro

from weaksam_jax.errors import BadInput

# What tyro prints: lines in a frame (of blanks on a terminal without UTF-8), rules between parts.
_FRAME = re.compile(r"^[│╭╰ ] ?|\s*[│╮╯]?$")
_LEFT_OUT = re.compile(r"^ {8,}|^ *[─-]{5,}|^$")  # the help of an option, a rule, an empty line
_END = re.compile("For full helptext|Argument helptext")


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
    several = not callable(command)
    asked = {name: _postponed(one) for name, one in command.items()} if several else None
    parse = tyro.extras.subcommand_cli_from_dict if several else tyro.cli
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            call = parse(asked or _postponed(command), args=argv, prog=prog, description=about)
    except SystemExit as end:
        if not end.code:
            raise
        raise BadInput(prog, _said(printed.getvalue()), f"see {prog} --help") from None
    call()


def _postponed(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """`command` with its signature, returning the call instead of making it."""

    @functools.wraps(command)
    def bind(*values, **named):
        return functools.partial(command, *values, **named)

    return bind


def _said(text: str) -> str:
    """What the parser's box says, without its title, its frame and the help of options."""
    lines = [_FRAME.sub("", line) for line in _END.split(text)[0].splitlines()[1:]]
    return " ".join(line.strip() for line in lines if not _LEFT_OUT.match(line)).rstrip(".")
