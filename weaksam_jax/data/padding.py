"""Images resized into a padded size, and boxes padded to a number."""

import cv2
import numpy as np

from weaksam_jax.boxes import flip as flip_boxes
from weaksam_jax.data.scales import PaddedSize


def resize_and_pad(
    image: np.ndarray,
    boxes: np.ndarray,
    padded_size: PaddedSize,
    *,
    scale: float | None = None,
    flip: bool = False,
) -> tuple[np.ndarray, np.ndarray, PaddedSize]:
    """Image `[h, w, c]` and boxes `[n, 4]` resized into the top left corner of a padded size.

    scale: the factor; None: the largest that fits. It is cut to what fits. Area averaging when
    shrinking, bilinear when growing. Returns (image `[H, W, c]` of the same dtype, zero outside,
    boxes float32 `[n, 4]`, (height, width) of the resized image). Coordinates in it are
    divided by (width / w, height / h) of that last size to get back to the original image.
    """
    height, width = image.shape[:2]
    fit = min(padded_size[0] / height, padded_size[1] / width)
    scale = fit if scale is None else min(scale, fit)
    new_height, new_width = (max(1, round(side * scale)) for side in (height, width))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, (new_width, new_height), interpolation=how)
    resized = resized.reshape(new_height, new_width, image.shape[2])  # cv2 drops a single channel
    factors = np.asarray([new_width / width, new_height / height] * 2, np.float32)
    boxes = boxes.astype(np.float32) * factors
    if flip:
        resized, boxes = resized[:, ::-1], flip_boxes(boxes, np.float32(new_width))
    padded = np.zeros((*padded_size, image.shape[2]), image.dtype)
    padded[:new_height, :new_width] = resized
    return padded, boxes, (new_height, new_width)


def pad_boxes(boxes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows `[n, ...]` cut or zero-padded to `[length, ...]`, and valid bool `[length]`.

    Works for boxes `[n, 4]` and for what goes with them (labels `[n]`, scores `[n]`).
    """
    kept = boxes[:length]
    padded = np.zeros((length, *boxes.shape[1:]), boxes.dtype)
    padded[: len(kept)] = kept
    return padded, np.arange(length) < len(kept)
