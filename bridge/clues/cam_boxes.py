"""Boxes of class activation maps alone: the baseline that detectors are held against."""

from collections.abc import Sequence

import cv2
import numpy as np


def cam_boxes(
    maps: np.ndarray,
    class_ids: Sequence[int],
    class_logits: np.ndarray,
    threshold: float = 0.2,
    min_area: int = 16,
    scale: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Baseline detections: boxes of the connected parts of thresholded CAMs.

    maps: float `[c, h, w]` in [0, 1] (usually `Clues.fine`). class_ids: `[c]`. class_logits: `[C]`.
    threshold: a part is 8-connected pixels with map >= threshold; a fifth of the maximum is the
    convention (Zhou et al., CVPR 2016, section 3.2). min_area: smallest part, in map pixels. scale:
    map pixels per image pixel. Returns boxes float32 `[n, 4]`, scores float32 `[n]` (the part's
    share of all parts' sum times the class probability) and labels int64 `[n]`, best first.
    """
    found = []
    for one, label in zip(maps, class_ids, strict=True):
        probability = 1 / (1 + np.exp(-float(class_logits[label])))
        mask = (one >= threshold).astype(np.uint8)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        total = np.bincount(parts.ravel(), weights=one.ravel(), minlength=count)
        all_parts = total[1:].sum()
        for part in range(1, count):
            x, y, width, height, area = (int(value) for value in stats[part])
            if area >= min_area:
                score = probability * total[part] / all_parts
                found.append((x, y, x + width, y + height, score, label))
    table = np.asarray(found, np.float64).reshape(-1, 6)
    table = table[np.argsort(-table[:, 4], kind="stable")]
    boxes = (table[:, :4] / scale).astype(np.float32)
    return boxes, table[:, 4].astype(np.float32), table[:, 5].astype(np.int64)
