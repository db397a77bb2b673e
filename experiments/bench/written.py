"""Where a bench writes: figures as OUT.json, beside them what is made of them."""

from pathlib import Path

from weaksam_jax.errors import BadInput


def beside(out: Path, suffix: str, flag: str = "--out") -> Path:
    """OUT<suffix> of the flag's OUT.json; `BadInput` when that is not its name."""
    if out.suffix != ".json":
        raise BadInput(flag, f"{out} is no name of a JSON file", "give one that ends in .json")
    return out.with_name(out.stem + suffix)
