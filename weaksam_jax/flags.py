"""Command lines of dataclasses: short help, all settings, optional parts, nearest names.

A command is a frozen dataclass of flags; a field that is itself a dataclass holds settings, shown
by --help-all alone. Annotated with `FLAT` it gives its settings no prefix: the field `wsod` of such
a part is `--wsod.*`. Parsing is tyro's. Imports neither jax nor torch.
"""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass, replace
from itertools import zip_longest
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import tyro

from weaksam_jax.errors import BadInput, did_you_mean
from weaksam_jax.outputs import check_outputs
from weaksam_jax.ranges import first_fault, hints_of, unchecked

Kind = TypeVar("Kind")
FLAT = tyro.conf.arg(name="")
_MORE = "--help-all shows every setting."


def parse(
    kind: type[Kind], argv: Sequence[str] | None, doc: str, name: str, default: Kind | None = None
) -> Kind:
    """The flags of a command as its dataclass `kind`.

    argv: None for the program's own. doc: the text above the flags; name: the command, such as
    "voc07" or "paper.ablation". default: where the flags start from (`tyro.MISSING` in its required
    fields). Raises `BadInput` for an unknown flag, with the nearest right one, for a value that
    does not fit its type or range (`weaksam_jax.ranges`), and for an output that is or belongs to
    an input (`weaksam_jax.outputs`); SystemExit(0) after --help and --help-all.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    argv, default = _optional_parts(kind, argv, default)
    short = _short(kind)
    if short is not kind:
        doc = f"{doc.rstrip()}\n\n{_MORE}"
    if "--help-all" in argv:
        return _tyro(kind, ["--help"], doc, prog=program(name), default=default)
    if {"-h", "--help"} & set(argv):
        return _tyro(short, ["--help"], doc, prog=program(name), default=default)
    check_known(argv, flag_names(kind), "see --help-all")
    with unchecked():
        found = _tyro(kind, argv, doc, prog=program(name), default=default)
    if fault := first_fault(type(found), found):
        raise BadInput(f"--{_flag_of(found, fault.field)}", fault.problem, fault.hint)
    check_outputs(dict(_values(found)))
    return found


def _values(value: Any, prefix: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(flag, (type with its marks, value)) of every flag, those of parts included."""
    hints = hints_of(type(value))
    for name, _, flat in _typed(type(value)):
        own, inner = prefix if flat else f"{prefix}{name.replace('_', '-')}", getattr(value, name)
        if is_dataclass(inner):
            yield from _values(inner, own if flat else f"{own}.")
        else:
            yield f"--{own}", (hints[name], inner)


def _flag_of(value: Any, place: str) -> str:
    """The flag, without its dashes, of a dotted name in the dataclass `value`."""
    name, _, rest = place.partition(".")
    if not is_dataclass(value):
        return place
    flat = next(flat for one, _, flat in _typed(type(value)) if one == name)
    own = [] if flat else [name.replace("_", "-")]
    return ".".join([*own, *([_flag_of(getattr(value, name), rest)] if rest else [])])


def program(name: str) -> str:
    """How the command was called: `weaksam NAME`, or the module."""
    if sys.argv[0] == f"weaksam {name}":
        return sys.argv[0]
    return f"python -m experiments.{name}"


def peek(argv: Sequence[str], name: str) -> str | None:
    """The value of a flag before anything is parsed; None when it is not given."""
    found = None
    for token, after in zip_longest(argv, argv[1:]):
        flag, _, value = token.partition("=")
        if _plain(flag) == name:
            found = value if "=" in token else after
    return found


def flag_names(kind: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all flags of `kind`, those of parts included, without the dashes."""
    for name, hint, flat in _typed(kind):
        own = prefix if flat else f"{prefix}{name.replace('_', '-')}"
        parts = _parts(hint)
        for part in parts:
            yield from flag_names(part, own if flat else f"{own}.")
        if not parts:
            yield own
        if not parts and bool in (hint, *get_args(hint)):
            yield f"{prefix}no-{name.replace('_', '-')}"


def _typed(kind: type) -> Iterator[tuple[str, Any, bool]]:
    """(name, type, whether annotated with `FLAT`) of every field."""
    plain, annotated = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    for one in fields(kind):
        marks = getattr(annotated[one.name], "__metadata__", ())
        yield one.name, plain[one.name], FLAT in marks


def _parts(hint: Any) -> list[type]:
    """The dataclasses that a field of this type may hold."""
    return [one for one in (hint, *get_args(hint)) if is_dataclass(one)]


def _short(kind: type[Kind]) -> type[Kind]:
    """`kind` with its parts hidden from the help; `kind` itself when it has none."""
    annotated, hidden = get_type_hints(kind, include_extras=True), []
    for one in fields(kind):
        if _parts(get_type_hints(kind)[one.name]):
            given = {"default": one.default}
            if one.default_factory is not MISSING:
                given = {"default_factory": one.default_factory}
            quiet = Annotated[annotated[one.name], tyro.conf.Suppress]
            hidden.append((one.name, quiet, field(**given)))
    return make_dataclass(kind.__name__, hidden, bases=(kind,), frozen=True) if hidden else kind


def _optional_parts(kind: type[Kind], argv: list[str], default: Kind | None):
    """`--PART none` leaves an optional part out; a flag below a part that is absent brings it in.

    Returns the other flags, and the default with those parts changed.
    """
    optional, changes, rest = dict(_optional(kind, default)), {}, []
    tokens = iter(argv)
    for token in tokens:
        flag, _, value = token.partition("=")
        if _plain(flag) in optional and (value or next(tokens, "")) == "none":
            changes[optional[_plain(flag)][0]] = None
            continue
        rest.append(token)
        for name, (path, part) in optional.items():
            if _plain(flag).startswith(f"{name}.") and _get(default, path) is None:
                changes[path] = part()
    for path, value in changes.items():
        default = _put(kind() if default is None else default, path, value)
    return rest, default


def _optional(kind: type, value: Any, prefix: str = "", path: tuple = ()) -> Iterator[tuple]:
    """(flag, (path of fields, dataclass)) of every part that may be None. value: a `kind`, or None;
    of a part with several types that of its value counts."""
    for name, hint, flat in _typed(kind):
        own = prefix if flat else f"{prefix}{name.replace('_', '-')}"
        parts, inner = _parts(hint), getattr(value, name, None)
        if len(parts) == 1 and type(None) in get_args(hint):
            yield own, ((*path, name), parts[0])
        for part in [one for one in parts if isinstance(inner, one)] or parts:
            below = own if flat else f"{own}."
            yield from _optional(part, inner, prefix=below, path=(*path, name))


def _get(value: Any, path: tuple) -> Any:
    for name in path:
        value = getattr(value, name, None)
    return value


def _put(value: Any, path: tuple, new: Any) -> Any:
    """A copy of nested dataclasses with another value at a path of fields."""
    name, *rest = path
    return replace(value, **{name: _put(getattr(value, name), tuple(rest), new) if rest else new})


def _plain(flag: str) -> str:
    """ "wsod.optim.lr" of "--wsod.optim.lr"; empty for what is no flag."""
    return flag[2:].replace("_", "-") if flag.startswith("--") else ""


def check_known(argv: Sequence[str], known: Iterable[str], more: str) -> None:
    """`BadInput` with the nearest right name for a flag that is none of `known` (without dashes).

    more: the hint when no name is near.
    """
    known = sorted(known)
    for token in argv:
        name = _plain(token.partition("=")[0])
        whole = re.sub(r"\.\d+", "", name)  # --scales.0 is an entry of scales
        if name and whole not in known:
            hint = re.sub("^did you mean ", "did you mean --", did_you_mean(name, known, more))
            raise BadInput(f"--{name}", "is no flag of this command", hint)


def _tyro(kind, argv: Sequence[str], doc: str, prog: str, default):
    more = {} if default is None else {"default": default}
    config = (tyro.conf.AvoidSubcommands,)
    return call_tyro(
        lambda about: tyro.cli(
            kind, args=argv, description=about, prog=prog, config=config, **more
        ),
        doc,
        prog,
    )


def call_tyro(call: Callable[[str], Any], doc: str, prog: str) -> Any:
    """Runs a parser of tyro, `call(description)`; its complaint becomes one line (`BadInput`).

    doc: stands in the help as it is written, where tyro would join its lines.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    shown = io.TextIOWrapper(io.BytesIO(), encoding, errors="replace")  # tyro asks for its encoding
    said, mark = io.StringIO(), "ABOUT"
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
            found = call(mark)
    except SystemExit as error:
        if error.code in (0, None):
            usage, _, options = _read(shown).partition(mark)
            print(f"{usage.rstrip()}\n\n{doc.strip()}\n\n{options.strip()}")
            raise
        raise _refusal(_one_line(said.getvalue()), prog) from None
    sys.stderr.write(said.getvalue())  # warnings
    return found


def _read(written: io.TextIOWrapper) -> str:
    written.seek(0)
    return written.read()


def _refusal(said: str, prog: str) -> BadInput:
    """The complaint, with the nearest choice where one was misspelt."""
    hint = f"see {prog} --help"
    if choice := re.search(r"invalid choice '(.*?)'.*one of \((.*)\)", said):
        hint = did_you_mean(choice[1], re.findall("'(.*?)'", choice[2]), hint)
    return BadInput("the command line", said, hint)


def _one_line(said: str) -> str:
    """The first part of tyro's message without its title, its frame (lines, or ASCII) and the help
    of options, which is indented far."""
    first = []
    for line in said.splitlines()[1:]:
        inner = line.strip("│|╭╮╰╯+")
        text = inner.strip()
        rule = not text.strip("─-")
        if rule and first:
            break
        first += [] if rule or inner.startswith(8 * " ") else [text]
    return " ".join(first).replace(" .", ".").rstrip(".:") or "cannot be read"
