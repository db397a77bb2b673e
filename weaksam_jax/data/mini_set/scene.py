"""The scenes of the mini set: what stands where, how it is drawn, and what is true of it.

Seven classes of things made of parts, of which one is more telling than the rest
(`weaksam_jax.data.mini_set.art`), one to five of a class in an image, touching and overlapping, cut
by the frame, four and more times apart in size, over textured grounds among class-free clutter:
hard in the ways weak supervision is hard.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from weaksam_jax.data.mini_set import art
from weaksam_jax.data.mini_set.paint import Part, Pose, paint, silhouette

CLASSES = tuple(art.ARTISTS)
# Width and height of the images: long side at most 192.
SHAPES = ((192, 144), (144, 192), (192, 160), (160, 192), (192, 128), (176, 176))
_SUPER = 2  # painted at twice the size, then averaged down
_BORDER = 2  # outline, pixels of the large canvas
_MIN_SIDE = 20  # pixels; a smaller object is difficult
_MIN_VISIBLE = 0.4  # share of the object's own area; a more hidden one is difficult
_LONG_SIDE = (32.0, 132.0)  # objects' long side in pixels, log-uniform
_TRIES = 16


@dataclass(frozen=True)
class MiniObject:
    """One object of a scene. box: VOC's 1-based inclusive corners of the visible pixels."""

    name: str
    box: tuple[int, int, int, int]
    truncated: bool
    difficult: bool


@dataclass(frozen=True)
class MiniScene:
    """image: uint8 `[H, W, 3]`. instances: uint8 `[H, W]`, k = k-th object (from 1), 255 void."""

    image: np.ndarray
    instances: np.ndarray
    objects: tuple[MiniObject, ...]


@dataclass(frozen=True)
class _Placed:
    name: str
    parts: list[Part]
    pose: Pose
    mask: np.ndarray  # bool, large canvas: the whole object as far as the frame shows it
    whole: int  # pixels of the object, frame or no frame


def draw_scene(seed: int, index: int) -> MiniScene:
    """Draws the scene of one image: a pure function of the seed and the image's number."""
    rng = np.random.default_rng([seed, index])
    width, height = SHAPES[rng.integers(len(SHAPES))]
    shape = (height * _SUPER, width * _SUPER)
    canvas = art.background(rng, *shape)
    light = np.array([rng.choice([-1.0, 1.0]) * rng.uniform(0.3, 1), -rng.uniform(0.4, 1)])
    placed = _arrange(rng, shape)
    for _ in range(rng.integers(2, 7)):
        _paint_clutter(rng, canvas, light)
    ink = rng.uniform(0.2, 0.5)
    for thing in placed:
        paint(canvas, thing.parts, thing.pose, _BORDER, ink, light)
    gain = rng.uniform(0.8, 1.1) * rng.uniform(0.95, 1.05, 3)
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    small = small * gain + rng.normal(0, 0.012, small.shape)
    image = np.clip(np.round(small * 255), 0, 255).astype(np.uint8)
    return _annotate(image, placed)


def _paint_clutter(rng: np.random.Generator, canvas: np.ndarray, light: np.ndarray) -> None:
    height, width = canvas.shape[:2]
    size = np.exp(rng.uniform(np.log(10), np.log(45))) * _SUPER / 2
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    pose = Pose(x, y, size, rng.uniform(0, 2 * np.pi), False)
    paint(canvas, art.clutter(rng), pose, _BORDER, rng.uniform(0.3, 0.8), light)


def _cast(rng: np.random.Generator) -> list[str]:
    """The classes of the scene's objects: mostly one or two classes, one to five of each."""
    classes = rng.choice([0, 1, 2, 3], p=[0.03, 0.47, 0.38, 0.12])
    chosen: list[str] = []
    while len(chosen) < classes:
        companion = art.COMPANION[chosen[-1]] if chosen and rng.random() < 0.55 else None
        name = companion or str(rng.choice(CLASSES))
        if name not in chosen:
            chosen.append(name)
        elif companion:
            chosen.append(str(rng.choice([c for c in CLASSES if c not in chosen])))
    share = [0.48, 0.28, 0.13, 0.07, 0.04] if classes < 3 else [0.65, 0.25, 0.1, 0, 0]
    return [name for name in chosen for _ in range(rng.choice([1, 2, 3, 4, 5], p=share))]


def _arrange(rng: np.random.Generator, shape: tuple[int, int]) -> list[_Placed]:
    """Places the cast back to front; a place that hides too much of the others is given up."""
    cast = _cast(rng)
    rng.shuffle(cast)
    crowd = max(1.0, (len(cast) / 2.6) ** 0.5)  # many objects are smaller on average
    placed: list[_Placed] = []
    for name in cast:
        may_hide = rng.random() < 0.06
        for _ in range(_TRIES):
            thing = _propose(rng, name, shape, placed, crowd)
            if _fits(thing, placed, may_hide):
                placed.append(thing)
                break
    return placed


def _propose(
    rng: np.random.Generator, name: str, shape: tuple[int, int], placed: list[_Placed], crowd: float
) -> _Placed:
    low, high = np.array(_LONG_SIDE) * _SUPER / 2  # `Pose.size` is half the long side
    size = np.exp(rng.uniform(np.log(low), np.log(high / crowd)))
    lean = art.LEAN[name]
    angle, mirror = rng.uniform(-lean, lean), bool(rng.random() < 0.5)
    friends = [other for other in placed if other.name == name] or placed
    where = rng.random()
    if friends and where < 0.5:  # beside or partly over another, most often of its own class
        other = friends[rng.integers(len(friends))]
        if other.name == name:  # things that stand together are alike in size
            size = np.clip(other.pose.size * rng.uniform(0.7, 1.3), low, high)
        turn, gap = rng.uniform(0, 2 * np.pi), rng.uniform(0.65, 1.0) * (size + other.pose.size)
        x, y = other.pose.x + gap * np.cos(turn), other.pose.y + gap * np.sin(turn)
    else:
        margin = 0.3 if where > 0.85 else 0.85  # sometimes cut by the frame
        room = [max(side - 2 * margin * size, 1.0) for side in shape]
        y, x = (margin * size + rng.uniform(0, side) for side in room)
    parts = art.ARTISTS[name](rng)
    pose = Pose(x, y, size, angle, mirror)
    mask = silhouette(shape, parts, pose, _BORDER) > 0
    side = int(3 * size) + 8
    centered = Pose(side / 2, side / 2, size, angle, mirror)
    whole = np.count_nonzero(silhouette((side, side), parts, centered, _BORDER))
    return _Placed(name, parts, pose, mask, whole)


def _fits(thing: _Placed, placed: list[_Placed], may_hide: bool) -> bool:
    """Enough of the thing is inside the frame, and enough of the others stays visible."""
    if np.count_nonzero(thing.mask) < 0.55 * thing.whole:
        return False
    floor = 0.25 if may_hide else 0.6
    covered = thing.mask.copy()
    for index in range(len(placed) - 1, -1, -1):
        other = placed[index]
        hidden = np.count_nonzero(other.mask & covered)
        if np.count_nonzero(other.mask) - hidden < floor * other.whole and (
            np.count_nonzero(other.mask & thing.mask)
        ):
            return False
        covered |= other.mask
    return True


def _annotate(image: np.ndarray, placed: list[_Placed]) -> MiniScene:
    """Masks, boxes and flags of what is visible; things hidden altogether are left out."""
    height, width = image.shape[:2]
    owner = np.zeros((height * _SUPER, width * _SUPER), np.uint8)
    for k, thing in enumerate(placed, 1):
        owner[thing.mask] = k
    shares = [np.ones((height, width), np.float32) * 0.5]
    for k in range(1, len(placed) + 1):
        cover = (owner == k).astype(np.float32)
        shares.append(cv2.resize(cover, (width, height), interpolation=cv2.INTER_AREA))
    small = np.argmax(shares, axis=0)  # background where no object has more than half the pixel
    instances, objects = np.zeros((height, width), np.uint8), []
    for k, thing in enumerate(placed, 1):
        rows, columns = np.nonzero(small == k)
        if not len(rows):
            continue
        box = (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)
        box = tuple(int(corner) for corner in box)
        inside = np.count_nonzero(thing.mask)
        visible = len(rows) * _SUPER**2 / thing.whole
        side = min(box[2] - box[0], box[3] - box[1]) + 1
        hard = side < _MIN_SIDE or visible < _MIN_VISIBLE
        objects.append(MiniObject(thing.name, box, inside < 0.97 * thing.whole, hard))
        instances[rows, columns] = len(objects)
    ring = cv2.dilate((instances > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    instances[ring & (instances == 0)] = 255
    return MiniScene(image, instances, tuple(objects))
