"""The things of the mini set: seven classes made of parts, clutter, and backgrounds.

Each class has one telling part (`Part.telling`, a tenth to a quarter of the object) in colours of
its own. Bodies tell less: a class has a usual body colour, which one in ten does without, out of
seven families that other classes and the clutter use as well; besides they differ by texture and
shape.
"""

import colorsys

import cv2
import numpy as np

from weaksam_jax.data.mini_set.paint import TEXTURES, Part

# Hue in degrees, saturation, value of the body colours.
_BODIES = {
    "sand": (36, 0.4, 0.85),
    "slate": (212, 0.45, 0.62),
    "moss": (100, 0.5, 0.5),
    "brick": (12, 0.6, 0.6),
    "plum": (285, 0.38, 0.55),
    "teal": (168, 0.5, 0.52),
    "ochre": (50, 0.68, 0.72),
}
_USUAL = 0.9  # share of bodies in the class's usual colour


def color(rng: np.random.Generator, hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB in [0, 1] near a hue (degrees), saturation and value."""
    jitter = rng.normal(0, [7.0, 0.05, 0.05])
    hsv = np.array([hue, saturation, value]) + jitter
    return np.array(
        colorsys.hsv_to_rgb((hsv[0] / 360) % 1, *np.clip(hsv[1:], 0.02, 0.98)), np.float32
    )


def body_color(rng: np.random.Generator, usual: str | None = None) -> np.ndarray:
    """A body colour: mostly of the usual family if there is one, else of any."""
    keep = usual is not None and rng.random() < _USUAL
    name = usual if keep else str(rng.choice(tuple(_BODIES)))
    return color(rng, *_BODIES[name])


def ellipse(x, y, rx, ry, turn=0.0, start=0.0, stop=2 * np.pi) -> np.ndarray:
    """Polygon `[32, 2]` of an ellipse or a sector's arc of one."""
    t = np.linspace(start, stop, 32)
    px, py = rx * np.cos(t), ry * np.sin(t)
    return np.stack(
        [x + px * np.cos(turn) - py * np.sin(turn), y + px * np.sin(turn) + py * np.cos(turn)], 1
    )


def limb(x0, y0, x1, y1, radius) -> np.ndarray:
    """A rounded bar from (x0, y0) to (x1, y1)."""
    angle = np.arctan2(y1 - y0, x1 - x0)
    a = ellipse(x1, y1, radius, radius, angle, -np.pi / 2, np.pi / 2)
    b = ellipse(x0, y0, radius, radius, angle, np.pi / 2, 3 * np.pi / 2)
    return np.concatenate([a, b])


def rounded(*corners, rounds: int = 3) -> np.ndarray:
    """A polygon with its corners cut (Chaikin)."""
    points = np.asarray(corners, float)
    for _ in range(rounds):
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.82 * points + 0.18 * after, 0.18 * points + 0.82 * after], 1)
        points = points.reshape(-1, 2)
    return points


def _pair(rng, base, contrast=0.25):
    """A colour and a darker or lighter second one."""
    return base, np.clip(base * (1 + rng.choice([-1, 1]) * contrast), 0, 1).astype(np.float32)


def fish(rng: np.random.Generator) -> list[Part]:
    """Scaly body, tail and fins; telling: a yellow head with black bars."""
    body, second = _pair(rng, body_color(rng, "slate"), 0.35)
    fin = body_color(rng, "slate")
    height, tail = rng.uniform(0.36, 0.5), rng.uniform(0.26, 0.4)
    front = 0.46
    head = ellipse(front - 0.06, 0, 0.5, height * 0.8, 0, -np.pi / 2, np.pi / 2)
    yellow, black = color(rng, 50, 0.85, 0.95), color(rng, 40, 0.3, 0.1)
    eye = ellipse(front + 0.22, -0.12, 0.085, 0.085)
    return [
        Part(rounded((-0.62, 0), (-1, -tail), (-0.9, 0), (-1, tail), rounds=2), fin, fin * 0.7,
             "ribs", 7),
        Part(rounded((-0.3, -0.25), (-0.05, -height - 0.24), (0.35, -0.25)), fin, fin * 0.7,
             "stripes", 6),
        Part(rounded((-0.1, 0.25), (-0.15, height + 0.16), (0.15, 0.25)), fin, fin * 0.7),
        Part(ellipse(-0.02, 0, 0.74, height), body, second, "scales", 5.5),
        Part(head, yellow, black, "stripes", 3.6, telling=True),
        Part(eye, np.ones(3, np.float32), black, "rings", 5, telling=True),
    ]  # fmt: skip


def snail(rng: np.random.Generator) -> list[Part]:
    """Foot and spiral shell; telling: a pink head with eyes on stalks."""
    foot, shell = body_color(rng, "ochre"), body_color(rng, "ochre")
    pink, white = color(rng, 325, 0.72, 0.92), np.ones(3, np.float32)
    radius, lift = rng.uniform(0.5, 0.6), rng.uniform(0.3, 0.42)
    parts = [
        Part(rounded((-1, 0.6), (-0.5, 0.3), (0.6, 0.28), (0.75, 0.6)), *_pair(rng, foot), "dots",
             7),
        Part(ellipse(-0.16, 0.02, radius, radius * 0.96), shell, shell * 0.62, "spiral", 4.2),
    ]  # fmt: skip
    for x in (0.62, 0.86):
        parts.append(Part(limb(x - 0.06, 0.1, x, -lift, 0.045), pink, pink * 0.8, telling=True))
        parts.append(Part(ellipse(x, -lift, 0.1, 0.1), white, pink * 0.2, "rings", 6, telling=True))
    parts.append(Part(ellipse(0.68, 0.26, 0.26, 0.3), pink, white, "plain", 6, telling=True))
    return parts


def mushroom(rng: np.random.Generator) -> list[Part]:
    """Stem, collar and brim; telling: a red crown with white dots."""
    stem, brim = body_color(rng, "sand"), body_color(rng, "sand")
    width, wide = rng.uniform(0.2, 0.3), rng.uniform(0.78, 0.98)
    red, white = color(rng, 356, 0.85, 0.85), np.ones(3, np.float32)
    crown = ellipse(0, -0.36, wide * 0.52, rng.uniform(0.46, 0.54), 0, np.pi, 2 * np.pi)
    return [
        Part(rounded((-width, -0.2), (width, -0.2), (width * 1.5, 0.95), (-width * 1.5, 0.95)),
             stem, stem * 0.72, "grain", 5),
        Part(ellipse(0, 0.12, width * 1.7, 0.12), stem, stem * 0.8, "stripes", 6),
        Part(rounded((-wide, -0.05), (-wide * 0.72, -0.62), (0, -0.86), (wide * 0.72, -0.62),
                     (wide, -0.05), (0, -0.17)), brim, brim * 0.75, "stripes", 5),
        Part(crown, red, white, "dots", 3.6, telling=True),
    ]  # fmt: skip


def lantern(rng: np.random.Generator) -> list[Part]:
    """Ribbed paper body, caps and tassel; telling: an orange glow with a dark sign."""
    paper = body_color(rng, "brick")
    dark = body_color(rng, "brick") * 0.6
    wide, tall = rng.uniform(0.48, 0.62), rng.uniform(0.6, 0.68)
    orange, ink = color(rng, 30, 0.95, 0.98), color(rng, 20, 0.8, 0.2)
    glow = rounded((0, -0.42), (0.37, 0), (0, 0.42), (-0.37, 0), rounds=2)
    return [
        Part(limb(0, 0.7, 0, 0.95, 0.07), dark, dark * 0.6, "stripes", 12),
        Part(limb(0, -0.98, 0, -0.7, 0.035), dark, dark),
        Part(rounded((-wide, -tall * 0.6), (-wide * 0.5, -tall), (wide * 0.5, -tall),
                     (wide, -tall * 0.6), (wide, tall * 0.6), (wide * 0.5, tall),
                     (-wide * 0.5, tall), (-wide, tall * 0.6)), paper, paper * 0.55, "ribs", 4.2),
        Part(rounded((-0.3, -tall - 0.12), (0.3, -tall - 0.12), (0.36, -tall + 0.06),
                     (-0.36, -tall + 0.06), rounds=1), dark, dark * 0.7),
        Part(rounded((-0.3, tall + 0.12), (0.3, tall + 0.12), (0.36, tall - 0.06),
                     (-0.36, tall - 0.06), rounds=1), dark, dark * 0.7),
        Part(glow, orange, ink, "plain", 3, telling=True),
        Part(rounded((-0.14, -0.17), (0.14, -0.17), (0.04, 0), (0.14, 0.17), (-0.14, 0.17),
                     (-0.04, 0), rounds=1), ink, ink, telling=True),
    ]  # fmt: skip


def robot(rng: np.random.Generator) -> list[Part]:
    """Riveted torso, arms and legs; telling: a cyan face with two eyes and an aerial."""
    metal, joint = body_color(rng, "teal"), body_color(rng, "teal") * 0.75
    cyan, black = color(rng, 184, 0.8, 0.92), color(rng, 200, 0.4, 0.12)
    wide, arm = rng.uniform(0.4, 0.5), rng.uniform(-0.35, 0.35)
    parts = [
        Part(limb(side * 0.2, 0.4, side * 0.24, 0.88, 0.11), joint, joint * 0.7, "ribs", 7)
        for side in (-1, 1)
    ]
    parts += [
        Part(limb(side * wide, -0.12, side * (wide + 0.22), 0.22 + side * arm, 0.09), joint,
             joint * 0.7, "ribs", 7)
        for side in (-1, 1)
    ]  # fmt: skip
    parts += [
        Part(rounded((-wide, -0.26), (wide, -0.26), (wide, 0.52), (-wide, 0.52), rounds=1), metal,
             metal * 0.5, "seams", 3.4),
        Part(limb(0, -0.78, 0, -0.94, 0.03), black, black, telling=True),
        Part(ellipse(0, -0.95, 0.06, 0.06), cyan, cyan, telling=True),
        Part(rounded((-0.36, -0.8), (0.36, -0.8), (0.33, -0.28), (-0.33, -0.28), rounds=2), cyan,
             cyan * 0.75, "plain", 4, telling=True),
    ]  # fmt: skip
    parts += [Part(ellipse(x, -0.6, 0.095, 0.095), black, np.ones(3, np.float32), "rings", 4,
                   telling=True) for x in (-0.16, 0.16)]  # fmt: skip
    parts.append(Part(limb(-0.16, -0.4, 0.16, -0.4, 0.04), black, cyan, "stripes", 9, telling=True))
    return parts


def beetle(rng: np.random.Generator) -> list[Part]:
    """Two wing covers and six legs; telling: a lime shield with black chevrons."""
    wing, second = _pair(rng, body_color(rng, "moss"), 0.4)
    leg = body_color(rng, "moss") * 0.45
    lime, black = color(rng, 74, 0.85, 0.92), color(rng, 100, 0.4, 0.1)
    wide = rng.uniform(0.46, 0.58)
    parts = []
    for x in (-0.45, -0.05, 0.35):
        for side in (-1, 1):
            foot = (x * 1.45, side * (wide + 0.2))
            parts.append(Part(limb(x, side * 0.3, *foot, 0.05), leg, leg * 0.8))
    parts += [Part(limb(0.7, side * 0.12, 0.98, side * 0.34, 0.03), leg, leg) for side in (-1, 1)]
    for side in (-1, 1):
        cover = ellipse(-0.2, 0, 0.74, wide, 0, 0, side * np.pi)
        parts.append(Part(cover, wing, second, "grain", 2.6))
    parts += [
        Part(ellipse(0.74, 0, 0.2, 0.22), black, leg, telling=True),
        Part(rounded((0.3, -0.4), (0.62, -0.34), (0.74, 0), (0.62, 0.34), (0.3, 0.4), (0.4, 0)),
             lime, black, "chevrons", 3.4, telling=True),
    ]  # fmt: skip
    return parts


def kite(rng: np.random.Generator) -> list[Part]:
    """Four panels and a tail with bows; telling: blue and white rings at the crossing."""
    one, two = body_color(rng, "plum"), body_color(rng, "plum")
    blue, white = color(rng, 228, 0.88, 0.88), np.ones(3, np.float32)
    wide, cross = rng.uniform(0.56, 0.7), rng.uniform(-0.4, -0.25)
    top, bottom = (0.0, -0.95), (0.0, 0.55)
    parts = []
    x, y = bottom
    for k in range(3):
        nx, ny = 0.09 * (-1) ** k, y + 0.15
        parts.append(Part(limb(x, y, nx, ny, 0.025), two * 0.6, two))
        if k:
            bow = [(nx - 0.13, ny - 0.08), (nx + 0.13, ny + 0.08), (nx + 0.13, ny - 0.08),
                   (nx - 0.13, ny + 0.08)]  # fmt: skip
            parts.append(Part(np.array(bow), one, one * 0.8))
        x, y = nx, ny
    for corner, first, second in (
        ((-wide, cross), one, two), ((wide, cross), two, one)
    ):  # fmt: skip
        parts.append(Part(np.array([top, corner, (0, cross)]), first, first * 0.78, "checks", 7))
        parts.append(
            Part(np.array([bottom, corner, (0, cross)]), second, second * 0.78, "checks", 7)
        )
    parts.append(Part(ellipse(0, cross, 0.26, 0.26), blue, white, "rings", 6.5, telling=True))
    return parts


# In alphabetical order, as the reader sorts the names of a VOCdevkit.
ARTISTS = {
    "beetle": beetle,
    "fish": fish,
    "kite": kite,
    "lantern": lantern,
    "mushroom": mushroom,
    "robot": robot,
    "snail": snail,
}
# How far an object of the class leans (radians, either way) and who its usual companion is.
LEAN = {
    "beetle": np.pi, "fish": 0.6, "kite": 0.7, "lantern": 0.25, "mushroom": 0.3, "robot": 0.25,
    "snail": 0.3,
}  # fmt: skip
COMPANION = {
    "beetle": "mushroom", "fish": "robot", "kite": "lantern", "lantern": "kite",
    "mushroom": "snail", "robot": "lantern", "snail": "mushroom",
}  # fmt: skip


def clutter(rng: np.random.Generator) -> list[Part]:
    """A class-free thing in the bodies' colours and textures: stone, rod, hoop or stack."""
    base = body_color(rng)
    second, texture = base * rng.uniform(0.6, 0.85), str(rng.choice(TEXTURES))
    kind, f = rng.integers(4), rng.uniform(3, 7)
    if kind == 0:
        angle = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radius = rng.uniform(0.5, 1, 9)
        points = rounded(*zip(radius * np.cos(angle), radius * np.sin(angle), strict=True))
        return [Part(points, base, second, texture, f)]
    if kind == 1:
        return [Part(limb(-0.9, 0, 0.9, rng.uniform(-0.3, 0.3), 0.12), base, second, texture, f)]
    if kind == 2:
        inner = body_color(rng)
        return [
            Part(ellipse(0, 0, 0.9, 0.8), base, second, texture, f),
            Part(ellipse(0, 0, 0.5, 0.45), inner, inner * 0.8),
        ]
    levels = rng.uniform(0.3, 0.8, 3)
    return [
        Part(rounded((-w, y), (w, y), (w, y + 0.5), (-w, y + 0.5), rounds=2), base, second, texture,
             f)
        for w, y in zip(levels, (-0.7, -0.2, 0.3), strict=True)
    ]  # fmt: skip


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Float32 `[height, width, 3]` in [0, 1]: two hues mixed by cloudy noise, with a fine grain."""
    hues = [
        color(rng, rng.uniform(0, 360), rng.uniform(0.1, 0.45), rng.uniform(0.3, 0.85))
        for _ in range(2)
    ]
    mix = np.zeros((height, width), np.float32)
    for cells in (2, 5, 11, 24):
        noise = rng.normal(size=(cells, cells)).astype(np.float32)
        mix += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / np.sqrt(cells)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    angle, f = rng.uniform(0, np.pi), rng.uniform(3, 14)
    along = np.cos(angle) * columns + np.sin(angle) * rows
    pattern = rng.integers(4)
    if pattern == 1:
        mix += 0.5 * np.sin(2 * np.pi * f * along + 1.5 * mix)
    elif pattern == 2:
        across = -np.sin(angle) * columns + np.cos(angle) * rows
        mix += 0.6 * np.sign(np.sin(np.pi * f * along) * np.sin(np.pi * f * across))
    elif pattern == 3:
        mix = mix + 0.8 * np.sin(2 * np.pi * f * 0.5 * np.hypot(columns, rows) + mix)
    share = np.clip(0.5 + 0.35 * mix, 0, 1)[..., None]
    grain = rng.normal(0, rng.uniform(0.02, 0.07), size=(height // 2, width // 2, 1))
    grain = cv2.resize(grain.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(hues[0] + share * (hues[1] - hues[0]) + grain[..., None], 0, 1).astype(
        np.float32
    )
