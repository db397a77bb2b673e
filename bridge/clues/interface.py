"""What every clue network returns for an image: the classification clues."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# A class is predicted when its class-token logit in the first view is above this (official
# code, docs/provenance/proposals.md, section 1).
PREDICTED_LOGIT = -0.5
# Maps of larger images (VOC has 500, COCO 640) are kept at this long side, to save memory.
MAP_LONG_SIDE = 1000


@dataclass(frozen=True)
class Clues:
    """Maps and class evidence of one image; c present classes out of C.

    coarse, fine: float32 `[c, h, w]`; cross: float32 `[M, c, h, w]`, M attention heads x layers, or
    None where the network has no class tokens. Every map is min-max normalised to [0, 1]; a
    constant map is all zero. class_ids: int64 `[c]`, ascending. class_logits: float32 `[C]`, first
    view. scale: map pixels per image pixel (1: the maps have the size of the image).
    """

    coarse: np.ndarray
    fine: np.ndarray
    cross: np.ndarray | None
    class_ids: np.ndarray
    class_logits: np.ndarray
    scale: float = 1.0


# (image uint8 [H, W, 3], present classes or None for the network's own prediction) -> Clues
ClueNetwork = Callable[[np.ndarray, tuple[int, ...] | None], Clues]


def predicted_classes(logits: np.ndarray, threshold: float = PREDICTED_LOGIT) -> np.ndarray:
    """Classes `[c]` whose logit `[C]` is above the threshold; the best one if there is none."""
    chosen = np.flatnonzero(logits > threshold)
    return chosen if len(chosen) else np.asarray([int(np.argmax(logits))])


def map_size(height: int, width: int) -> tuple[tuple[int, int], float]:
    """Size (height, width) of an image's maps and their scale: the image's own unless it is huge.

    Both sides are scaled alike up to rounding; `scale` is map pixels per image pixel.
    """
    scale = min(1.0, MAP_LONG_SIDE / max(height, width))
    return (max(1, round(height * scale)), max(1, round(width * scale))), scale


def minmax(maps: np.ndarray) -> np.ndarray:
    """Maps `[..., h, w]` scaled to [0, 1], each by its own extremes; constant maps become 0."""
    maps = np.asarray(maps, np.float32)
    low = maps.min(axis=(-2, -1), keepdims=True)
    span = maps.max(axis=(-2, -1), keepdims=True) - low
    scaled = maps - low  # the one copy: maps of many classes are gigabytes
    np.divide(scaled, np.where(span > 0, span, 1), out=scaled)
    np.copyto(scaled, 0, where=~(span > 0))
    return scaled
