"""The packages that the GPU card needs, asked for before anything imports them.

Nothing but the standard library is imported here: the machine may be anybody's.
"""

from collections.abc import Mapping
from importlib.util import find_spec

from weaksam_jax.errors import BadInput

# Modules and the packages that hold them: those of the requirements that the card imports, and what
# tyro and grain import, for wheels are brought with --no-deps.
NEEDED = {
    "jax": "jax",
    "flax": "flax",
    "optax": "optax",
    "orbax.checkpoint": "orbax-checkpoint",
    "grain": "grain",
    "array_record": "array-record",
    "portpicker": "portpicker",
    "tyro": "tyro",
    "docstring_parser": "docstring-parser",
    "typeguard": "typeguard",
    "safetensors": "safetensors",
    "pycocotools": "pycocotools",
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "tqdm": "tqdm",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "torchvision": "torchvision",
    "segment_anything": "segment-anything",
    "timm": "timm",
}


def check_packages(where: str, needed: Mapping[str, str] = NEEDED) -> None:
    """`BadInput` that names all missing packages at once; needed: packages by their modules."""
    if missing := [package for module, package in needed.items() if not is_there(module)]:
        hint = f"pip install --no-deps {' '.join(missing)}"
        raise BadInput(where, f"lacks {', '.join(missing)}", hint)


def is_there(module: str) -> bool:
    """Whether a module could be imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is part of
        return False
