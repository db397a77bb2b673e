"""Variations of nested configs."""

from weaksam_jax.settings import change


def vary(config, **parts):
    """The config with other values in its parts: `vary(TINY, optim={"steps": 2})`."""
    flat = {f"{part}.{name}": value for part, own in parts.items() for name, value in own.items()}
    return change(config, flat)
