"""Every number in the configs of the stages, and how to put another value in its place."""

import dataclasses
from typing import Annotated, get_args, get_origin

from experiments.pipeline.config import light, mini
from weaksam_jax.ranges import hints_of
from weaksam_jax.settings import to_plain

STAGES = {
    f"{stage}": getattr(config, stage)
    for config in (light(), mini())  # the parts of both; where they have the same, of mini
    for stage in ("clue_use", "weaktr", "lite", "export", "wsod", "pgt", "retrain", "masks")
}


def leaves(value, hint, place=()):
    """(names from the root, hint) of everything in a config that holds a number."""
    if dataclasses.is_dataclass(value):
        for name, inner in hints_of(type(value)).items():
            yield from leaves(getattr(value, name), inner, (*place, name))
    elif kind_of(hint) in (int, float):
        yield place, hint


def kind_of(hint):
    """int, float or another type, through Annotated, unions with None and tuples."""
    inner = get_args(hint)
    if get_origin(hint) is Annotated or get_origin(hint) is tuple:
        return kind_of(inner[0])
    if get_origin(hint) is not None and type(None) in inner:
        return kind_of(next(one for one in inner if one is not type(None)))
    return hint


def planted(hint, now, value):
    """JSON of the field's value with one number of it replaced."""
    inner = get_args(hint)
    if get_origin(hint) is Annotated:
        return planted(inner[0], now, value)
    if get_origin(hint) is tuple:
        now = now or (None,)
        return [planted(inner[0], now[0], value), *map(to_plain, now[1:])]
    if type(None) in inner:
        return planted(next(one for one in inner if one is not type(None)), now, value)
    return value


def nested(names, value):
    for name in reversed(names):
        value = {name: value}
    return value


def value_at(config, names):
    for name in names:
        config = getattr(config, name)
    return config


PLACES = [
    (stage, place, hint)
    for stage, config in STAGES.items()
    for place, hint in leaves(config, type(config))
]
