"""The brush of the mini set: polygons with textures, light and outline on a float canvas.

An object is a list of `Part`s in its own frame (x right, y down, about [-1, 1]); a `Pose` puts the
frame on the canvas. Textures live in the object's frame, so they turn and scale with it.
"""

from dataclasses import dataclass

import cv2
import numpy as np

_SHIFT = 4  # cv2 polygons in 1/16 pixel


@dataclass(frozen=True)
class Part:
    """One polygon of an object.

    points: float `[n, 2]`, object frame. color, second: RGB in [0, 1], mixed by the texture.
    texture: a name of `TEXTURES`; frequency: cycles per unit length. telling: the part by which the
    class is known at a glance.
    """

    points: np.ndarray
    color: np.ndarray
    second: np.ndarray
    texture: str = "plain"
    frequency: float = 4.0
    telling: bool = False


@dataclass(frozen=True)
class Pose:
    """Object frame -> canvas: mirror, turn by `angle` radians, scale to `size` pixels, move."""

    x: float
    y: float
    size: float
    angle: float
    mirror: bool

    def matrix(self) -> np.ndarray:
        """Float `[2, 3]`: canvas = matrix @ (x, y, 1)."""
        cos, sin = np.cos(self.angle) * self.size, np.sin(self.angle) * self.size
        flip = -1.0 if self.mirror else 1.0
        return np.array([[cos * flip, -sin, self.x], [sin * flip, cos, self.y]])


def silhouette(shape: tuple[int, int], parts: list[Part], pose: Pose, border: int) -> np.ndarray:
    """uint8 coverage `[H, W]` (0 or 255) of all parts with their outline of `border` pixels."""
    mask = np.zeros(shape, np.uint8)
    matrix = pose.matrix()
    for part in parts:
        points = _fixed(part.points @ matrix[:, :2].T + matrix[:, 2])
        cv2.fillPoly(mask, [points], 255, cv2.LINE_8, _SHIFT)
        if border:
            cv2.polylines(mask, [points], True, 255, 2 * border, cv2.LINE_8, _SHIFT)
    return mask


def paint(
    canvas: np.ndarray, parts: list[Part], pose: Pose, border: int, ink: float, light: np.ndarray
) -> None:
    """Paints an object onto float32 `[H, W, 3]` in place: its outline first, then part by part.

    ink: brightness of outlines against the part's colour. light: direction `[2]` the light is from.
    """
    matrix = pose.matrix()
    polygons = [part.points @ matrix[:, :2].T + matrix[:, 2] for part in parts]
    for part, polygon in zip(parts, polygons, strict=True):
        _stroke(canvas, polygon, part.color * ink * 0.8, 2 * border)
    inverse = cv2.invertAffineTransform(matrix)
    for part, polygon in zip(parts, polygons, strict=True):
        _fill(canvas, part, polygon, inverse, light)
        _stroke(canvas, polygon, part.color * (0.35 + 0.65 * ink), max(border // 2, 1))


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.round(points * (1 << _SHIFT)).astype(np.int32)


def _window(canvas: np.ndarray, polygon: np.ndarray, margin: int) -> tuple[slice, slice] | None:
    """The part of the canvas that a polygon touches, or None."""
    low = np.maximum(np.floor(polygon.min(0)).astype(int) - margin, 0)
    high = np.minimum(np.ceil(polygon.max(0)).astype(int) + margin + 1, canvas.shape[1::-1])
    if (high <= low).any():
        return None
    return slice(low[1], high[1]), slice(low[0], high[0])


def _stroke(canvas: np.ndarray, polygon: np.ndarray, color: np.ndarray, thickness: int) -> None:
    window = _window(canvas, polygon, thickness + 1)
    if window is None:
        return
    points = _fixed(polygon - [window[1].start, window[0].start])
    alpha = np.zeros(canvas[window].shape[:2], np.uint8)
    cv2.polylines(alpha, [points], True, 255, thickness, cv2.LINE_AA, _SHIFT)
    _blend(canvas[window], color, alpha)


def _fill(
    canvas: np.ndarray, part: Part, polygon: np.ndarray, inverse: np.ndarray, light: np.ndarray
) -> None:
    window = _window(canvas, polygon, 2)
    if window is None:
        return
    top, left = window[0].start, window[1].start
    alpha = np.zeros(canvas[window].shape[:2], np.uint8)
    cv2.fillPoly(alpha, [_fixed(polygon - [left, top])], 255, cv2.LINE_AA, _SHIFT)
    rows = np.arange(top, window[0].stop, dtype=np.float32)[:, None]
    columns = np.arange(left, window[1].stop, dtype=np.float32)[None, :]
    u, v = (row[0] * columns + row[1] * rows + row[2] for row in inverse.astype(np.float32))
    middle = part.points.mean(0)
    mix = _TEXTURES[part.texture](u - middle[0], v - middle[1], np.float32(part.frequency))
    color = part.color + mix[..., None] * (part.second - part.color)
    # Light: brighter towards the lamp across the part, as on a rounded body.
    spread = np.ptp(polygon, axis=0).max() + 1
    center = polygon.mean(0)
    slope = ((columns - center[0]) * light[0] + (rows - center[1]) * light[1]) / spread
    _blend(canvas[window], color * (1 + 0.45 * slope[..., None]), alpha)


def _blend(view: np.ndarray, color: np.ndarray, alpha: np.ndarray) -> None:
    share = alpha[..., None].astype(np.float32) / 255
    view += share * (np.clip(color, 0, 1).astype(np.float32) - view)


def _wave(x: np.ndarray) -> np.ndarray:
    """A square-ish wave in [0, 1], period 1."""
    return np.clip(0.5 + 1.6 * np.sin(2 * np.pi * x), 0, 1)


def _plain(u, v, f):
    return 0.5 + 0.25 * np.sin(f * (u + 0.6 * v))


def _stripes(u, v, f):
    return _wave(f * u)


def _ribs(u, v, f):
    return 0.5 + 0.5 * np.sin(2 * np.pi * f * v)


def _scales(u, v, f):
    row = np.floor(f * v)
    du, dv = f * u + 0.5 * (row % 2), f * v - row
    return np.clip(2.2 * np.hypot(du - np.floor(du) - 0.5, dv - 0.2) - 0.6, 0, 1)


def _dots(u, v, f):
    row = np.floor(f * v)
    du, dv = f * u + 0.5 * (row % 2), f * v - row - 0.5
    return np.clip(4 * (0.42 - np.hypot(du - np.floor(du) - 0.5, dv)), 0, 1)


def _checks(u, v, f):
    return np.clip(0.5 + 2 * np.sin(np.pi * f * u) * np.sin(np.pi * f * v), 0, 1)


def _rings(u, v, f):
    return _wave(f * np.hypot(u, v) + 0.25)


def _spiral(u, v, f):
    return _wave(f * np.hypot(u, v) + np.arctan2(v, u) / (2 * np.pi))


def _chevrons(u, v, f):
    return _wave(f * (u + np.abs(v)))


def _grain(u, v, f):
    return 0.5 + 0.3 * np.sin(2 * np.pi * f * u + 2 * np.sin(5 * v)) + 0.2 * np.sin(31 * u)


def _seams(u, v, f):
    """Plates with dark seams and rivets."""
    du, dv = f * u - np.round(f * u), f * v - np.round(f * v)
    seam = np.maximum(np.abs(du), np.abs(dv)) > 0.42
    rivet = np.hypot(np.abs(du) - 0.28, np.abs(dv) - 0.28) < 0.1
    return (seam | rivet).astype(np.float32)


_TEXTURES = {
    "plain": _plain,
    "stripes": _stripes,
    "ribs": _ribs,
    "scales": _scales,
    "dots": _dots,
    "checks": _checks,
    "rings": _rings,
    "spiral": _spiral,
    "chevrons": _chevrons,
    "grain": _grain,
    "seams": _seams,
}
TEXTURES = tuple(_TEXTURES)
