"""What the maps of a clue network say of each proposal, before any detector is trained."""

from pathlib import Path

import numpy as np

from weaksam_jax.data.records import TagRecord
from weaksam_jax.data.store import is_stored, proposal_path, read_clues
from weaksam_jax.errors import BadInput


def clue_evidence(
    root: str | Path, split: str, record: TagRecord, boxes: np.ndarray, classes: int
) -> np.ndarray:
    """`box_cosine` float32 `[n, classes]` of the fine maps stored in `root`.

    boxes: `[n, 4]`, pixels of the upright image. 0 for a class without a map (a training image has
    maps of its tags). Raises `BadInput` when the image has no file of clues, or one
    that cannot be.
    """
    if not is_stored(root, split, record.image_id):
        path = proposal_path(root, split, record.image_id)
        hint = "export clues beside the proposals, or set clue_evidence to 0"
        raise BadInput(path, "does not exist (the clues of an image)", hint)
    stored = read_clues(root, split, record, names=("fine",), classes=classes)
    maps = stored["fine"].astype(np.float32)
    scale = np.asarray([maps.shape[2] / record.width, maps.shape[1] / record.height] * 2)
    found = np.zeros((len(boxes), classes), np.float32)
    found[:, stored["class_ids"]] = box_cosine(maps, boxes * scale)
    return found


def box_cosine(maps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Cosine similarity of maps and boxes, each box as a map of ones inside and zeros outside.

    maps: float `[c, h, w]`, at least 0, constant over each cell; boxes: `[n, 4]` in cells, inside
    the map. Returns float32 `[n, c]` in [0, 1], 0 for an empty map or box. It is the geometric mean
    of the share of the map that a box holds and the map's mean in it (over the norm of the map), so
    that a part loses by the first and a loose box by the second.
    """
    maps, boxes = np.asarray(maps, np.float64), np.asarray(boxes, np.float64)
    inside = np.maximum(box_sums(maps, boxes), 0)
    x1, y1, x2, y2 = boxes.T
    norm = np.sqrt((maps**2).sum((1, 2))) * np.sqrt((x2 - x1) * (y2 - y1))[:, None]
    return np.where(norm > 0, inside / np.where(norm > 0, norm, 1), 0).astype(np.float32)


def box_sums(maps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Sums float64 `[n, c]` of maps `[c, h, w]`, constant over each cell, inside boxes `[n, 4]`.

    Boxes are in cells, inside the map; a cell counts with the part of it that is in the box.
    """
    integral = np.pad(np.asarray(maps, np.float64), ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)
    x1, y1, x2, y2 = np.asarray(boxes, np.float64).T
    right = _at(integral, y2, x2) - _at(integral, y1, x2)
    return (right - _at(integral, y2, x1) + _at(integral, y1, x1)).T


def _at(integral: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear values `[c, n]` of `[c, h + 1, w + 1]`: exact for cells that are constant."""
    bottom, right = integral.shape[1] - 1, integral.shape[2] - 1
    y, x = np.clip(y, 0, bottom), np.clip(x, 0, right)
    top, left = np.minimum(y.astype(int), bottom - 1), np.minimum(x.astype(int), right - 1)
    dy, dx = y - top, x - left
    upper = integral[:, top, left] * (1 - dx) + integral[:, top, left + 1] * dx
    lower = integral[:, top + 1, left] * (1 - dx) + integral[:, top + 1, left + 1] * dx
    return upper * (1 - dy) + lower * dy
