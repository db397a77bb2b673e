"""WeakSAM in JAX: everything that is compiled, and the plain NumPy records both sides share.

    import weaksam_jax
    detector = weaksam_jax.load("runs/mine")          # a run folder or a weights file
    found = detector("beach.jpg")                     # boxes, scores, labels, names, masks

Importing this package, `weaksam_jax.boxes`, `weaksam_jax.errors`, `weaksam_jax.files` or
`weaksam_jax.data` imports neither jax nor torch, so that `bridge` may use them.
"""

from typing import Any

__version__ = "0.1.0"  # the one place; pyproject.toml and the run's figures take it from here
__all__ = ["PhotoDetections", "PhotoDetector", "load", "load_detector", "save_detector"]
_HOMES = {"load_detector": "detectors", "save_detector": "detectors"}  # the others: photos


def __getattr__(name: str) -> Any:
    """What `__all__` names, imported when it is first asked for (it brings jax)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'photos')}"), name)
