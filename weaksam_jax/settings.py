"""Settings to JSON and back: the one place for settings.json, --config and weights' metadata.

Settings are frozen dataclasses, nested, of numbers, text, booleans, None, paths, tuples of these
and choices (`Literal`). Imports neither jax nor torch.
"""

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from weaksam_jax.errors import BadSetting, did_you_mean
from weaksam_jax.ranges import WANTED, check, first_fault, shown, unchecked

Kind = TypeVar("Kind")


def to_plain(value: Any) -> Any:
    """JSON values of settings: dataclasses become objects, tuples lists and paths text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: to_plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def from_plain(
    kind: type[Kind],
    values: Any,
    path: str | Path,
    base: Kind | None = None,
    field: str = "",
) -> Kind:
    """The dataclass `kind` from the JSON values of a file; inverse of `to_plain`.

    What `values` does not name keeps the value of `base`, or the default of `kind`. path: the file
    (for errors). field: dotted name of `values` in it ("": the file itself). Raises `BadSetting`
    for an unknown name (with the nearest right one), a value of another type or out of its range
    (`weaksam_jax.ranges`), or a value that is missing and has no default.
    """
    with unchecked():
        found = _read_dataclass(kind, values, path, where=field, base=base)
    if fault := first_fault(kind, found):
        raise BadSetting(path, *(fault.within(field) if field else fault))
    return found


def _read_dataclass(
    kind: type[Kind], values: Any, path: str | Path, where: str, base: Kind | None
) -> Kind:
    if not isinstance(values, dict):
        raise BadSetting(path, where, "is no object of settings", hint="give a JSON object {...}")
    hints = _hints(kind)
    known = [one.name for one in fields(kind)]
    found = {}
    for name, value in values.items():
        if name not in known:
            hint = did_you_mean(name[:60], known, f"choose from {', '.join(known)}")
            raise BadSetting(path, _inside(where, name[:60]), "is unknown", hint=hint)
        inner = getattr(base, name, None)
        found[name] = _read(hints[name], value, path, where=_inside(where, name), base=inner)
    if base is not None:
        return replace(base, **found)
    try:
        return kind(**found)
    except TypeError as error:
        hint = "add what is missing"
        raise BadSetting(path, where, f"is incomplete ({error})", hint=hint) from error


def _inside(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def change(config: Kind, values: Mapping[str, Any]) -> Kind:
    """The config with other values, by dotted name: `change(config, {"optim.lr": 1e-3})`.

    Raises `BadSetting` when all of them together do not fit.
    """
    with unchecked():
        for name, value in values.items():
            first, _, rest = name.partition(".")
            inner = change(getattr(config, first), {rest: value}) if rest else value
            config = replace(config, **{first: inner})
    check(config)
    return config


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(hint: Any, value: Any, path: str | Path, where: str, base: Any) -> Any:
    """The value of one setting as its type wants it."""
    if hint is Any:
        return _as_tuples(value)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _read_union(get_args(hint), value, path, where=where, base=base)
    if origin is Literal:
        return _read_choice(get_args(hint), value, path, where=where)
    if origin is tuple:
        return _read_tuple(get_args(hint), value, path, where=where)
    if origin is dict:
        return _checked(dict, value, path, where=where)
    if is_dataclass(hint):
        same = base if isinstance(base, hint) else None
        return _read_dataclass(hint, value, path, where=where, base=same)
    return _read_plain(hint, value, path, where=where)


def _read_union(kinds: tuple, value: Any, path: str | Path, where: str, base: Any) -> Any:
    """By the first of `kinds` that the value fits; of several dataclasses that of `base` alone."""
    if value is None and type(None) in kinds:
        return None
    kinds = [kind for kind in kinds if kind is not type(None)]
    own = [kind for kind in kinds if is_dataclass(kind) and isinstance(base, kind)]
    kinds = [kind for kind in kinds if kind in own or not (own and is_dataclass(kind))]
    first = None
    for kind in kinds:
        try:
            return _read(kind, value, path, where=where, base=base)
        except BadSetting as error:
            first = first or error
    raise first


def _read_choice(choices: tuple, value: Any, path: str | Path, where: str) -> Any:
    if any(value == one and type(value) is type(one) for one in choices):
        return value
    hint = f"choose from {', '.join(map(str, choices))}"
    if isinstance(value, str):
        hint = did_you_mean(value[:60], [one for one in choices if isinstance(one, str)], hint)
    raise BadSetting(path, where, f"is {shown(value)}, no choice", hint=hint)


def _read_tuple(kinds: tuple, value: Any, path: str | Path, where: str) -> tuple:
    _checked(list, value, path, where=where)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        problem = f"has {len(value)} entries instead of {len(kinds)}"
        raise BadSetting(path, where, problem, hint="correct it")
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(
        _read(kind, one, path, where=f"{where}.{i}", base=None) for i, (kind, one) in pairs
    )


def _read_plain(kind: type, value: Any, path: str | Path, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**1023 else value  # no float: out of every range
    if kind is Path:
        return Path(_checked(str, value, path, where=where))
    return _checked(kind, value, path, where=where)


def _checked(kind: type, value: Any, path: str | Path, where: str) -> Any:
    """`value` when it is of this type (a boolean is no number)."""
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    wanted = WANTED.get(kind, {list: "a list", dict: "an object"}.get(kind, kind.__name__))
    raise BadSetting(path, where, f"is {shown(value)}, not {wanted}", hint="correct it")


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
