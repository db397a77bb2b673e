"""Variations of nested configs."""

from dataclasses import replace


def vary(config, **parts):
    """The config with other values in its parts: `vary(TINY, optim={"steps": 2})`."""
    changed = {name: replace(getattr(config, name), **values) for name, values in parts.items()}
    return replace(config, **changed)
