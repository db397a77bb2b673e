"""Command lines of functions: flags from signatures and docstrings, usage errors in one line."""

import contextlib
import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence

import tyro

from weaksam_jax.errors import BadInput

_FRAME = re.compile(r"^[│╭╰] ?|\s*[│╮╯]$")
_DETAIL = re.compile(r"^ {8,}")  # the help of an option


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
        raise BadInput(prog, _first_part(printed.getvalue()), f"see {prog} --help") from None
    call()


def _postponed(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """`command` with its signature, returning the call instead of making it."""

    @functools.wraps(command)
    def bind(*values, **named):
        return functools.partial(command, *values, **named)

    return bind


def _first_part(text: str) -> str:
    """What the parser's box says, without its frame, the help of options and what follows."""
    lines = [_FRAME.sub("", line) for line in text.splitlines()[1:]]  # behind the title
    rule = next((i for i, line in enumerate(lines) if line.startswith("───")), len(lines))
    said = [line.strip() for line in lines[:rule] if line and not _DETAIL.match(line)]
    return " ".join(said).rstrip(".")
