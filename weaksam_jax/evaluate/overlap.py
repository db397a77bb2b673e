"""How boxes overlap, for every figure: pycocotools' own arithmetic, on boxes as they are written.

Thresholds are round numbers and so are many boxes, so that IoUs of just 0.5 occur. Whether such a
one counts hangs on the last bit: on width and height as they stand in the files (not taken back
from corners), in float64, in the order of operations of the reference.
"""

import numpy as np
from pycocotools import mask as mask_utils


def xywh_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU float64 `[n, m]` of boxes `[n, 4]` and `[m, 4]`, x y width height."""
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.asarray(mask_utils.iou(a, b, [0] * len(b))).reshape(len(a), len(b))
