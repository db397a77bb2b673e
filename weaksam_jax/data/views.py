"""How an image is shown to the MIL detector, and boxes there and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weaksam_jax.boxes import clip, flip
from weaksam_jax.data.batches import Canvas
from weaksam_jax.data.records import TagRecord
from weaksam_jax.data.scales import Scale


@dataclass(frozen=True)
class View:
    """How an image is shown to the network: index of the scale, mirrored or not."""

    scale: int
    mirrored: bool


def views_of(scales: Sequence[Scale], mirrored: bool = True) -> list[View]:
    """Every scale, plain and (when `mirrored`) mirrored."""
    flips = (False, True) if mirrored else (False,)
    return [View(scale, flip) for scale in range(len(scales)) for flip in flips]


def fitted_size(record: TagRecord, canvas: Canvas) -> tuple[int, int]:
    """(height, width) of the image in the canvas, as `resize_to_canvas` makes it."""
    scale = min(canvas[0] / record.height, canvas[1] / record.width)
    return max(1, round(record.height * scale)), max(1, round(record.width * scale))


def place_boxes(
    boxes: np.ndarray, record: TagRecord, size: tuple[int, int], mirrored: bool
) -> np.ndarray:
    """Boxes of the original image in a view of that (height, width)."""
    factors = np.asarray([size[1] / record.width, size[0] / record.height] * 2, np.float32)
    boxes = boxes * factors
    return flip(boxes, np.float32(size[1])) if mirrored else boxes


def restore_boxes(boxes, size, original, mirrored):
    """Boxes `[..., 4]` of a view in pixels of the original image, cut to it.

    size, original: (height, width) of the image in the view and as it is; mirrored: bool. NumPy or
    JAX arrays (in a compiled function, so that a view and its mirror share one program).
    """
    xp = boxes.__array_namespace__()
    boxes = xp.where(mirrored, flip(boxes, size[1]), boxes)
    x, y = original[1] / size[1], original[0] / size[0]
    return clip(boxes * xp.stack([x, y, x, y]), original[1], original[0])
