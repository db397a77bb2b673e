"""Peak points of class activation and attention maps (Algorithm 1 of the paper)."""

import cv2
import numpy as np


def peak_points(
    maps: np.ndarray, kernel: int, threshold: float, max_peaks: int = 25
) -> list[np.ndarray]:
    """Local maxima of every map, best first (WeakSAM, Algorithm 1; official code for ties and cap).

    A pixel is a peak when it is the largest of the `kernel` x `kernel` window around it and at
    least `threshold`. Of the `max_peaks` best (equal values in raster order), one that lies nearer
    than (kernel - 1) // 2 in L1 to a better one is dropped; two window maxima that near are always
    equal, so this only thins out plateaus. NaN pixels are never peaks; a map that is constant or
    all NaN has none.

    maps: float `[M, H, W]`. kernel: odd side in pixels. Returns M arrays `[n, 3]` of (x, y, value),
    x the column and y the row, float32 (float64 for float64 maps). Raises ValueError for an even
    kernel (its window has no centre pixel) and for maps that are not `[M, H, W]`.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel must be an odd number of pixels, got {kernel}")
    maps = np.asarray(maps)
    if maps.ndim != 3:
        raise ValueError(f"maps must be [M, H, W], got shape {maps.shape}")
    maps = maps.astype(np.float64 if maps.dtype == np.float64 else np.float32, copy=False)
    candidates = [_candidates(one, kernel, threshold, max_peaks=max_peaks) for one in maps]
    return _drop_ties(candidates, (kernel - 1) // 2)


def _candidates(one: np.ndarray, kernel: int, threshold: float, max_peaks: int) -> np.ndarray:
    """The best `max_peaks` window maxima of a map `[H, W]` as `[n, 3]`."""
    none = np.zeros((0, 3), one.dtype)
    high = one >= threshold
    rows = np.flatnonzero(high.any(1))
    if not len(rows) or np.nanmin(one) == np.nanmax(one):
        return none
    columns = np.flatnonzero(high.any(0))
    # Pixels below the threshold can neither be peaks nor hide one, so the pooling needs only the
    # bounding box of the others.
    top, left = rows[0], columns[0]
    box = (slice(top, rows[-1] + 1), slice(left, columns[-1] + 1))
    values = np.where(high[box], one[box], -np.inf).astype(one.dtype)
    y, x = np.nonzero((values == _max_pool(values, kernel)) & high[box])
    value = values[y, x]
    best = np.argsort(-value, kind="stable")[:max_peaks]
    return np.stack([x[best] + left, y[best] + top, value[best]], axis=1).astype(one.dtype)


def _max_pool(values: np.ndarray, kernel: int) -> np.ndarray:
    """Largest value of the window around every pixel `[H, W]`, one axis after the other."""
    side = [min(kernel, 2 * n - 1) for n in values.shape]  # wider windows see nothing more
    border = {"borderType": cv2.BORDER_CONSTANT, "borderValue": -np.inf}
    pooled = cv2.dilate(values, np.ones((1, side[1]), np.uint8), **border)
    return cv2.dilate(pooled, np.ones((side[0], 1), np.uint8), **border)


def _drop_ties(candidates: list[np.ndarray], reach: int) -> list[np.ndarray]:
    """Greedy removal, in the order given, of points nearer than `reach` (L1) to a kept one."""
    longest = max((len(points) for points in candidates), default=0)
    places = np.full((len(candidates), longest, 2), np.inf)
    for row, points in zip(places, candidates, strict=True):
        row[: len(points)] = points[:, :2]
    kept = np.isfinite(places[..., 0])
    for i in range(1, longest):
        with np.errstate(invalid="ignore"):  # padding: inf - inf is NaN, and NaN is not near
            distance = np.abs(places[:, :i] - places[:, i : i + 1]).sum(-1)
        kept[:, i] &= ~((distance < reach) & kept[:, :i]).any(1)
    return [points[keep[: len(points)]] for points, keep in zip(candidates, kept, strict=True)]
