"""An entry of `experiments.bench`: our form of some work and another, on the same seeded input."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Entry:
    """Two forms of the same work.

    work: in words. ours, other: called without arguments, end when their result is on the host's
    side. other_name: what the other form is. agree: makes a text from both results, what they agree
    on; None: nothing to compare.
    """

    work: str
    ours: Callable[[], Any]
    other_name: str
    other: Callable[[], Any]
    agree: Callable[[Any, Any], str] | None = None


Case = Callable[[], Entry]


def random_boxes(rng: np.random.Generator, count: int, width: float, height: float) -> np.ndarray:
    """float32 `[count, 4]` boxes of mixed sizes inside the image."""
    size = np.exp(rng.uniform(np.log(16), np.log(min(width, height) - 1), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * (np.asarray([width, height]) - size)
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def random_image(seed: int, height: int, width: int) -> np.ndarray:
    """uint8 RGB `[height, width, 3]` of random rectangles."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    for _ in range(12):
        y, x = rng.integers(0, height), rng.integers(0, width)
        image[y : y + height // 3, x : x + width // 3] = rng.integers(0, 256, 3)
    return image
