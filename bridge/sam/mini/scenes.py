"""Procedural scenes with nested masks, for training a promptable segmenter.

A scene is a function of an integer seed: abstract things (polygons, splines, stars, rings,
bars, leaves, bent limbs) under procedural textures, drawn back to front with occlusion, shadows and
light, then degraded as a photograph is. Every thing yields the mask of its visible whole and
of its visible parts; things drawn as a cluster also yield the mask of the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

Rng = np.random.Generator
MIN_AREA = 120  # pixels of a visible mask worth learning
MIN_SEEN = 0.3  # visible share below which a thing is no longer labelled
SAME = 0.9  # IoU above which two masks are one


def draw_scene(
    seed: int, size: int = 256, photos: Sequence[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scene number `seed`: image uint8 RGB [size, size, 3] and masks bool [n, size, size].

    photos: uint8 RGB images to cut texture fills and backgrounds from, beside the procedural
    textures; the scene then depends on them too.
    """
    rng = np.random.default_rng(seed)
    canvas = background(rng, size, photos)
    labels: list[np.ndarray] = []  # visible masks so far
    drawn: list[int] = []  # area of each when it was drawn, unoccluded
    for _ in range(rng.integers(2, 6)):
        cluster = []
        members = int(rng.integers(2, 5)) if rng.random() < 0.3 else 1
        centre, radius = rng.uniform(0, size, 2), thing_radius(rng, size)
        texture = make_texture(rng, size, photos)
        for _ in range(members):
            place = centre if members == 1 else centre + rng.normal(0, 0.9 * radius, 2)
            own = texture if rng.random() < 0.5 else make_texture(rng, size, photos)
            masks = draw_thing(
                rng,
                canvas,
                place,
                radius=radius * rng.uniform(0.7, 1.2),
                texture=own,
                photos=photos,
            )
            for earlier in labels + cluster:
                earlier &= ~masks[0]
            cluster += masks
            drawn += [int(mask.sum()) for mask in masks]
        labels += cluster
        if members > 1:
            labels.append(np.logical_or.reduce(cluster))
            drawn.append(int(labels[-1].sum()))
    if rng.random() < 0.5:
        scatter_clutter(rng, canvas)
    image = degrade(rng, light(rng, canvas))
    return image, keep_distinct(labels, drawn, size)


def thing_radius(rng: Rng, size: int) -> float:
    """Log-uniform between 1/14 and 2/5 of the image side."""
    return size * float(np.exp(rng.uniform(np.log(1 / 14), np.log(0.4))))


def keep_distinct(labels: list[np.ndarray], drawn: list[int], size: int) -> np.ndarray:
    """Visible enough masks without near-duplicates: bool [n, size, size], small to large."""
    kept: list[np.ndarray] = []
    areas = [int(mask.sum()) for mask in labels]
    for i in sorted(range(len(labels)), key=areas.__getitem__):
        if areas[i] < max(MIN_AREA, MIN_SEEN * drawn[i]) or areas[i] > 0.9 * size * size:
            continue
        same = ((labels[i] & other).sum() > SAME * (labels[i] | other).sum() for other in kept)
        if not any(same):
            kept.append(labels[i])
    return np.stack(kept) if kept else np.zeros((0, size, size), bool)


# ---------------------------------------------------------------------------- textures


def colour(rng: Rng) -> np.ndarray:
    """A random RGB colour in 0..255, half of the time muted as most things are."""
    rgb = rng.uniform(0, 255, 3)
    if rng.random() < 0.5:
        rgb = rgb.mean() + (rgb - rgb.mean()) * rng.uniform(0, 0.5)
    return rgb.astype(np.float32)


def fractal(rng: Rng, size: int, first: int = 2, persistence: float = 0.55) -> np.ndarray:
    """Multi-octave value noise, float32 [size, size] scaled to 0..1."""
    total, weight, cells = np.zeros((size, size), np.float32), 1.0, first
    while cells < size:
        grid = rng.random((cells + 1, cells + 1), np.float32)
        total += weight * cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
        weight, cells = weight * persistence, cells * 2
    return cv2.normalize(total, None, 0, 1, cv2.NORM_MINMAX)


def axes(rng: Rng, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates in a randomly turned frame, two float32 [size, size]."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * x + s * y, c * y - s * x


def bands(rng: Rng, size: int) -> np.ndarray:
    """Soft or hard parallel bands, bent by noise."""
    u, _ = axes(rng, size)
    bend = rng.uniform(0, 25) * fractal(rng, size, 2, persistence=0.3)
    wave = np.sin((u + bend) * np.float32(2 * np.pi / rng.uniform(5, 40)))
    return np.clip(0.5 + wave * rng.choice([0.5, 3.0]), 0, 1)


def tiles(rng: Rng, size: int) -> np.ndarray:
    """A two-coloured lattice of rectangles, every other row shifted at times."""
    u, v = axes(rng, size)
    wide, high = rng.uniform(5, 30, 2)
    row = np.floor(v / high)
    column = np.floor(u / wide + 0.5 * row * rng.integers(2))
    return ((row + column) % 2).astype(np.float32)


def cells(rng: Rng, size: int) -> np.ndarray:
    """Distance to the nearest of random seeds: pebble-like cells."""
    seeds = np.full((size, size), 255, np.uint8)
    count = int(rng.integers(20, 300))
    seeds[tuple(rng.integers(0, size, (2, count)))] = 0
    far = cv2.distanceTransform(seeds, cv2.DIST_L2, 3)
    return np.clip(far / rng.uniform(6, 24), 0, 1).astype(np.float32)


def rings(rng: Rng, size: int) -> np.ndarray:
    """Stretched, disturbed rings, as in sawn wood."""
    u, v = axes(rng, size)
    far = np.hypot(u - rng.uniform(-size, size), (v - rng.uniform(-size, size)) * 0.2)
    phase = far / rng.uniform(3, 10) + 5 * fractal(rng, size, 2, persistence=0.4)
    return (0.5 + 0.5 * np.sin(phase)).astype(np.float32)


def specks(rng: Rng, size: int) -> np.ndarray:
    """White noise smoothed to a random grain."""
    noise = rng.random((size, size), np.float32)
    return cv2.normalize(
        cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.6, 4)), None, 0, 1, cv2.NORM_MINMAX
    )


def ramp(rng: Rng, size: int) -> np.ndarray:
    """A linear gradient across the image."""
    u, _ = axes(rng, size)
    return cv2.normalize(u, None, 0, 1, cv2.NORM_MINMAX)


PATTERNS: tuple[Callable[[Rng, int], np.ndarray], ...] = (
    fractal, fractal, bands, tiles, cells, rings, specks, ramp,
)  # fmt: skip


def make_texture(rng: Rng, size: int, photos: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """A textured sheet, float32 RGB [size, size, 3] in 0..255."""
    if photos is not None and len(photos) and rng.random() < 0.6:
        return photo_crop(rng, size, photos)
    one = colour(rng)
    if rng.random() < 0.3:  # nearly plain
        return one + rng.normal(0, rng.uniform(0, 6), (size, size, 1)).astype(np.float32)
    pattern = PATTERNS[rng.integers(len(PATTERNS))](rng, size)[..., None]
    contrast = rng.uniform(0.1, 1.0) if rng.random() < 0.7 else 1.0
    two = one + contrast * (colour(rng) - one)
    sheet = one + pattern * (two - one)
    return sheet * (0.8 + 0.4 * fractal(rng, size)[..., None])


def photo_crop(rng: Rng, size: int, photos: Sequence[np.ndarray]) -> np.ndarray:
    """A random window of a random photo, scaled to [size, size, 3] float32."""
    photo = photos[rng.integers(len(photos))]
    side = int(min(photo.shape[:2]) * rng.uniform(0.3, 1.0))
    y, x = (int(rng.integers(n - side + 1)) for n in photo.shape[:2])
    window = cv2.resize(photo[y : y + side, x : x + side], (size, size))
    return (window[:, ::-1] if rng.random() < 0.5 else window).astype(np.float32)


def background(rng: Rng, size: int, photos: Sequence[np.ndarray] | None) -> np.ndarray:
    """One texture, or two that meet along a wavy line; float32 [size, size, 3]."""
    sheet = make_texture(rng, size, photos)
    if rng.random() < 0.4:
        _, v = axes(rng, size)
        line = rng.uniform(0.2, 0.8) * size + 30 * (fractal(rng, size, 2) - 0.5)
        beyond = (v - v.min()) * size / np.ptp(v) > line
        sheet[beyond] = make_texture(rng, size, photos)[beyond]
    return sheet


# ---------------------------------------------------------------------------- outlines


def radial(rng: Rng) -> np.ndarray:
    """A smooth closed curve r(angle) from a few Fourier terms: blobs, beans, clovers."""
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    order = np.arange(1, 7)[:, None]
    terms = rng.normal(0, rng.uniform(0.1, 0.45), (6, 1)) / order
    r = 1 + (terms * np.cos(order * angle + rng.uniform(0, 6.3, (6, 1)))).sum(0)
    return np.clip(r, 0.15, None)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def polygon(rng: Rng) -> np.ndarray:
    """An irregular polygon of 3 to 8 corners."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
    r = rng.uniform(0.6, 1.1, len(angle))
    return r[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def superellipse(rng: Rng) -> np.ndarray:
    """|x|^n + |y|^n = 1: from a rhombus over the ellipse to a rectangle."""
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    power = 2 / float(np.exp(rng.uniform(np.log(1.0), np.log(12.0))))
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([np.sign(c) * np.abs(c) ** power, np.sign(s) * np.abs(s) ** power], 1)


def star(rng: Rng) -> np.ndarray:
    """Spikes or teeth around a disc."""
    points = int(rng.integers(3, 12)) * 2
    angle = np.arange(points) * 2 * np.pi / points
    r = np.where(np.arange(points) % 2, rng.uniform(0.35, 0.85), 1.0)
    return r[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def leaf(rng: Rng) -> np.ndarray:
    """Two arcs between two tips; bent, it is a crescent."""
    t = np.linspace(-1, 1, 30)
    bulge, bend = rng.uniform(0.15, 0.7), rng.uniform(-0.8, 0.8)
    edge, spine = bulge * (1 - t**2), bend * (1 - t**2)
    return np.concatenate([np.stack([t, spine + edge], 1), np.stack([t, spine - edge], 1)[::-1]])


def limb(rng: Rng) -> np.ndarray:
    """A thick bent stroke with round joints, as the outline of its drawing."""
    angles = np.cumsum(rng.normal(0, 0.8, int(rng.integers(2, 5))))
    path = np.cumsum(np.stack([np.cos(angles), np.sin(angles)], 1), 0)
    path = (path - path.mean(0)) / max(np.ptp(path, 0).max(), 1e-6)
    pixels = (path * 120 + 128).astype(np.int32)
    stroke = np.zeros((256, 256), np.uint8)
    cv2.polylines(stroke, [pixels], False, 255, int(rng.integers(8, 45)))
    contours, _ = cv2.findContours(stroke, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return (contours[0][:, 0] - 128) / 75.0


OUTLINES = (radial, radial, polygon, superellipse, superellipse, star, leaf, limb)


def outline(rng: Rng, centre: np.ndarray, radius: float) -> np.ndarray:
    """A random outline around `centre`, stretched and turned: int32 [m, 2] in 1/16 pixel."""
    points = OUTLINES[rng.integers(len(OUTLINES))](rng)
    points = points * [1.0, np.exp(rng.uniform(np.log(0.35), 0.0))]
    c, s = np.cos(angle := rng.uniform(0, 2 * np.pi)), np.sin(angle)
    return np.round((points @ [[c, s], [-s, c]] * radius + centre) * 16).astype(np.int32)


def fill(points: np.ndarray, size: int) -> np.ndarray:
    """Anti-aliased coverage of an outline in 1/16 pixel: float32 [size, size] in 0..1."""
    canvas = np.zeros((size, size), np.uint8)
    cv2.fillPoly(canvas, [points], 255, cv2.LINE_AA, shift=4)
    return canvas.astype(np.float32) / 255


# ------------------------------------------------------------------------------ things


def draw_thing(
    rng: Rng,
    canvas: np.ndarray,
    centre: np.ndarray,
    radius: float,
    texture: np.ndarray,
    photos: Sequence[np.ndarray] | None,
) -> list[np.ndarray]:
    """Paint one thing on `canvas` (in place); masks bool [size, size]: whole, then parts.

    Parts are of three kinds: limbs that stick out (drawn before the body), patches on the
    body (clipped to it), and a hole through it (which belongs to nothing).
    """
    size = len(canvas)
    body = fill(outline(rng, centre, radius), size)
    limbs = [
        fill(outline(rng, centre + rng.normal(0, radius, 2), radius * rng.uniform(0.35, 0.7)), size)
        for _ in range(rng.choice([0, 0, 0, 1, 2, 3]))
    ]
    patches = [
        body
        * fill(
            outline(rng, centre + rng.normal(0, 0.4 * radius, 2), radius * rng.uniform(0.3, 0.65)),
            size,
        )
        for _ in range(rng.choice([0, 0, 0, 1, 2, 3]))
    ]
    limbs = [part for part in limbs if (part * body).sum() > 0.03 * part.sum()]
    if rng.random() < 0.1:
        body = body * (1 - fill(outline(rng, centre, radius * rng.uniform(0.3, 0.6)), size))
        patches = [part * body for part in patches]
    whole = np.maximum.reduce([body, *limbs])
    if rng.random() < 0.4:
        cast_shadow(rng, canvas, whole, radius=radius)
    pieces = [*limbs, body, *patches]
    for piece in pieces:
        sheet = texture if piece is body else make_texture(rng, size, photos)
        paint(rng, canvas, piece, sheet=sheet, radius=radius)
    masks = [piece > 0.5 for piece in pieces]
    for i, mask in enumerate(masks):
        later = patches if piece_is_limb(i, limbs) else []
        for above in masks[i + 1 : len(masks) - len(patches)] + [p > 0.5 for p in later]:
            mask &= ~above
    parts = masks if len(masks) > 1 else []
    return [whole > 0.5, *parts]


def piece_is_limb(index: int, limbs: list[np.ndarray]) -> bool:
    """Limbs come first in the drawing order; the body keeps what patches cover of it."""
    return index < len(limbs)


def paint(rng: Rng, canvas: np.ndarray, alpha: np.ndarray, sheet: np.ndarray, radius: float):
    """Blend a textured piece into the canvas, shaded towards one side, at times outlined."""
    if rng.random() < 0.5:
        u, _ = axes(rng, len(canvas))
        inside = alpha > 0.5
        if inside.any():
            u = (u - u[inside].mean()) / max(radius, 1.0)
            sheet = sheet * (1 + rng.uniform(0.05, 0.35) * np.clip(u, -1.5, 1.5))[..., None]
    canvas += alpha[..., None] * (sheet - canvas)
    if rng.random() < 0.25:
        edge = cv2.morphologyEx(alpha, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) * alpha
        canvas += edge[..., None] * rng.uniform(0.3, 0.9) * (colour(rng) * 0.4 - canvas)


def cast_shadow(rng: Rng, canvas: np.ndarray, alpha: np.ndarray, radius: float):
    """Darken the canvas beside a thing, in place."""
    shift = rng.normal(0, 0.25 * radius, 2)
    move = np.float32([[1, 0, shift[0]], [0, 1, shift[1]]])
    shadow = cv2.warpAffine(alpha, move, alpha.shape[::-1])
    shadow = cv2.GaussianBlur(shadow, (0, 0), 1 + 0.15 * radius)
    canvas *= 1 - rng.uniform(0.15, 0.6) * shadow[..., None]


def scatter_clutter(rng: Rng, canvas: np.ndarray):
    """Thin unlabelled lines and dots over the canvas, in place."""
    size = len(canvas)
    for _ in range(rng.integers(1, 12)):
        a, b = rng.integers(0, size, 2), rng.integers(-40, 40, 2)
        rgb = colour(rng).tolist()
        if rng.random() < 0.5:
            cv2.line(canvas, a.tolist(), (a + b).tolist(), rgb, 1, cv2.LINE_AA)
        else:
            cv2.circle(canvas, a.tolist(), int(rng.integers(1, 4)), rgb, -1, cv2.LINE_AA)


# -------------------------------------------------------------------- light and camera


def light(rng: Rng, canvas: np.ndarray) -> np.ndarray:
    """Uneven light, contrast and tint over the whole scene."""
    field = 1 + rng.uniform(0, 0.5) * (fractal(rng, len(canvas), 1, persistence=0.3) - 0.5)
    tint = rng.uniform(0.85, 1.15, 3).astype(np.float32)
    grey = canvas.mean()
    return (grey + (canvas * field[..., None] * tint - grey) * rng.uniform(0.6, 1.1)).clip(0, 255)


def degrade(rng: Rng, canvas: np.ndarray) -> np.ndarray:
    """Blur, loss of resolution, sensor noise, JPEG; float [s, s, 3] -> uint8 [s, s, 3]."""
    size = len(canvas)
    if rng.random() < 0.4:
        side = int(size * rng.uniform(0.4, 0.9))
        canvas = cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA)
        canvas = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_LINEAR)
    elif rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 1.5))
    if rng.random() < 0.6:
        noise = rng.standard_normal(canvas.shape, np.float32)
        canvas = canvas + rng.uniform(0, 10) * noise
    image = canvas.clip(0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        quality = int(rng.integers(35, 95))
        _, coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    return image
