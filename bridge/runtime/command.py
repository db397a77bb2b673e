"""Command lines of functions: flags from signatures and docstrings, usage errors in one line."""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

import tyro

from weaksam_jax.errors import BadInput
from weaksam_jax.flags import call_tyro, check_known
from weaksam_jax.outputs import check_outputs
from weaksam_jax.ranges import first_fault


def run_command(
    command: Callable[..., None] | Mapping[str, Callable[..., None]],
    argv: Sequence[str] | None,
    prog: str,
    about: str,
) -> None:
    """Calls `command` (of several by name: the one named first) with what `argv` says.

    Flags are the function's arguments, their help its docstring's `Args`; `about` begins `--help`.
    Raises `BadInput` for wrong arguments, out of their range (`weaksam_jax.ranges`) or outputs
    that belong to an input (`weaksam_jax.outputs`) among them, and SystemExit(0) for --help.
    """
    argv = sys.argv[1:] if argv is None else argv
    if callable(command):
        names, asked, parse = flags_of(command), _postponed(command), tyro.cli
    else:
        names = {flag for one in command.values() for flag in flags_of(one)}
        asked = {name: _postponed(one) for name, one in command.items()}
        parse = tyro.extras.subcommand_cli_from_dict
    check_known(argv, {*names, "help"}, f"see {prog} --help")
    call = call_tyro(lambda doc: parse(asked, args=argv, prog=prog, description=doc), about, prog)
    given = _values(call)
    for flag, (hint, value) in given.items():
        if fault := first_fault(hint, value):
            raise BadInput(flag, fault.problem, fault.hint)
    check_outputs(given)
    call()


def _values(call: functools.partial) -> dict[str, tuple[Any, Any]]:
    """(type with its marks, value) of every flag that was given."""
    hints = get_type_hints(call.func, include_extras=True)
    given = inspect.signature(call.func).bind(*call.args, **call.keywords)
    return {
        f"--{_name_of(name, hints[name])}": (hints[name], value)
        for name, value in given.arguments.items()
    }


def _name_of(name: str, hint: Any) -> str:
    """The flag of an argument, without dashes: its own name, or the one that `hint` gives it."""
    marks = [getattr(mark, "name", None) for mark in getattr(hint, "__metadata__", ())]
    return next(filter(None, marks), name).replace("_", "-")


def flags_of(command: Callable[..., None]) -> set[str]:
    """The flags of a function's arguments, without dashes."""
    found = set()
    for name, hint in get_type_hints(command, include_extras=True).items():
        own = _name_of(name, hint)
        found |= {own, f"no-{own}"} if hint is bool else {own}
    return found - {"return"}


def _postponed(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """`command` with its signature, returning the call instead of making it."""

    @functools.wraps(command)
    def bind(*values, **named):
        return functools.partial(command, *values, **named)

    return bind
