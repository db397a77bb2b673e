"""Contact sheets: several pictures in one, for README and quick looks."""

import math
from collections.abc import Sequence

import cv2
import numpy as np


def contact_sheet(
    images: Sequence[np.ndarray],
    columns: int,
    *,
    cell: tuple[int, int] | None = None,
    gap: int = 8,
    background: tuple[int, int, int] = (255, 255, 255),
) -> np.ndarray:
    """Pictures in rows of `columns`, each fitted into a cell with its shape kept.

    images: uint8 RGB `[h, w, 3]`, any sizes. cell: (width, height) in pixels; None: the largest
    width and height, so that nothing shrinks. Returns uint8 RGB. Raises ValueError without
    pictures or columns.
    """
    if not len(images) or columns < 1:
        raise ValueError("a contact sheet needs at least one picture and one column")
    if cell is None:
        cell = (max(i.shape[1] for i in images), max(i.shape[0] for i in images))
    width, height = cell
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, 3)
    sheet = np.full(shape, background, np.uint8)
    for index, image in enumerate(images):
        fitted = _fit(image, width, height)
        row, column = divmod(index, columns)
        top = gap + row * (height + gap) + (height - fitted.shape[0]) // 2
        left = gap + column * (width + gap) + (width - fitted.shape[1]) // 2
        sheet[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    return sheet


def _fit(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The image at the largest size inside the cell."""
    factor = min(width / image.shape[1], height / image.shape[0])
    if factor == 1:
        return image
    size = [max(1, int(round(side * factor, 6))) for side in (image.shape[1], image.shape[0])]
    how = cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA
    return cv2.resize(image, size, interpolation=how)
