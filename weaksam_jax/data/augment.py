"""Augmentation of training images: geometry, colour and hidden patches, for every detector."""

from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np

from weaksam_jax.boxes import area, clip, flip
from weaksam_jax.data.scales import PaddedSize, Shown
from weaksam_jax.ranges import INTERVAL, Scaling, Settings, Share, between

_MIN_SIDE = 4.0  # pixels of the padded size; smaller boxes are no training objects
_MIN_VISIBLE = 0.4  # share of a box that must be inside a random crop
_CROPS = 10  # tries before the whole image is taken
PATCH = 24  # pixels: side of a hidden patch

# Of the colours of ImageNet's training images, RGB in [0, 1] (Krizhevsky et al. 2012, section 4.1):
# eigenvalues of the covariance's square root, and eigenvectors in columns.
LIGHT_VALUES = np.asarray([0.2175, 0.0188, 0.0045])
LIGHT_VECTORS = np.asarray(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


@dataclass(frozen=True)
class AugmentConfig(Settings):
    """Random changes of a training image."""

    scale: Annotated[tuple[Scaling, Scaling], INTERVAL] = (1.0, 1.0)
    """Range of a factor on top of what fits the padded size (above 1: a random crop)."""
    flip: Share = 0.5
    """Chance of a mirror image."""
    colour: Share = 0.0
    """Largest relative change of brightness, contrast and saturation."""
    channel_gain: Share = 0.0
    """Largest relative change of each channel, and of brightness by 64 levels at 1."""
    lighting: Annotated[float, between(0, 10)] = 0.0
    """Deviation of AlexNet's lighting noise."""
    hide: Share = 0.0
    """Share of hidden patches (Hide-and-Seek)."""


def jitter_channels(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Random gain of each channel and random brightness; the padding (0) stays 0."""
    gain = rng.uniform(1 - amount, 1 + amount, 3).astype(np.float32)
    shifted = image * gain + np.float32(rng.uniform(-amount, amount) * 64) * (image > 0)
    return np.clip(shifted, 0, 255).astype(np.uint8)


def hide_patches(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The image with about `share` of its patches set to the mean grey.

    Hide-and-Seek (Singh and Lee 2017): with the telling part out of sight the rest must tell.
    """
    height, width = image.shape[:2]
    hidden = rng.random((height // PATCH + 2, width // PATCH + 2)) < share
    top, left = rng.integers(0, PATCH, 2)
    rows, columns = (np.arange(height) + top) // PATCH, (np.arange(width) + left) // PATCH
    return np.where(hidden[rows][:, columns, None], np.uint8(127), image)


def light_noise(image: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """AlexNet's lighting noise: one random shift of RGB, along the principal colours.

    image: uint8 RGB `[H, W, 3]`. std: of the three coefficients, 0.1 in MIST's official code
    (grey moves by 3.2 levels then, one standard deviation). The result is rounded and cut to
    uint8, which the floats of the official code are not.
    """
    shift = 255 * LIGHT_VECTORS @ (LIGHT_VALUES * rng.normal(0, std, 3))
    return np.clip(np.round(image + shift), 0, 255).astype(np.uint8)


def crop_and_resize(
    image: np.ndarray,
    boxes: np.ndarray,
    shown: Shown,
    rng: np.random.Generator,
    config: AugmentConfig,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, PaddedSize]:
    """Resizes (jittered), crops or pads to the padded size, mirrors and recolours.

    image uint8 `[h, w, 3]`, boxes `[n, 4]`. Returns (image uint8 `[H, W, 3]`, zero outside; boxes
    `[n, 4]` cut to what is visible; which of them are still objects, bool `[n]`; (height, width) of
    the visible part, in the top left corner). A crop in which no box is left is drawn again.
    """
    height, width = image.shape[:2]
    padded, fit = shown.padded, shown.fit(height, width)
    for attempt in range(_CROPS + 1):
        scale = fit * rng.uniform(*config.scale) if attempt < _CROPS else fit
        new = max(1, round(height * scale)), max(1, round(width * scale))
        seen = min(new[0], padded[0]), min(new[1], padded[1])
        y, x = (int(rng.integers(0, a - b + 1)) for a, b in zip(new, seen, strict=True))
        factor = np.asarray([new[1] / width, new[0] / height] * 2, np.float32)
        moved = boxes * factor - np.asarray([x, y, x, y], np.float32)
        cut = clip(moved, seen[1], seen[0])
        sides = np.minimum(cut[:, 2] - cut[:, 0], cut[:, 3] - cut[:, 1])
        inside = (area(cut) >= _MIN_VISIBLE * area(moved)) & (sides >= _MIN_SIDE)
        if inside.any():
            break
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, (new[1], new[0]), interpolation=how)
    visible = resized[y : y + seen[0], x : x + seen[1]]
    if rng.random() < config.flip:
        visible, cut = visible[:, ::-1], flip(cut, np.float32(seen[1]))
    out = np.zeros((*padded, 3), np.uint8)
    out[: seen[0], : seen[1]] = recolour(visible, rng, config.colour)
    return out, cut, inside, seen


def recolour(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Brightness, contrast and saturation each changed by up to `strength` (relative); uint8."""
    if strength == 0:
        return image
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    pixels = image.astype(np.float32)
    grey = pixels @ np.asarray([0.299, 0.587, 0.114], np.float32)
    pixels = saturation * pixels + (1 - saturation) * grey[..., None]
    pixels = brightness * (contrast * pixels + (1 - contrast) * grey.mean())
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8)


def light_augment(
    image: np.ndarray, crop: int, min_scale: float, jitter: float, rng: np.random.Generator
) -> np.ndarray:
    """Random resized crop, mirror and colour jitter: uint8 `[H, W, 3]` -> uint8 `[crop, crop, 3]`.

    The crop has a share of min_scale..1 of the area and an aspect ratio within 3/4..4/3 (as far as
    the image allows); brightness, contrast and saturation are multiplied by 1 - jitter..1 + jitter
    (about the mean of the channels, where `recolour` has the luminance).
    """
    height, width = image.shape[:2]
    area = height * width * rng.uniform(min_scale, 1)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w = min(width, max(1, round((area * ratio) ** 0.5)))
    h = min(height, max(1, round((area / ratio) ** 0.5)))
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    part = image[y : y + h, x : x + w]
    shrinks = max(h, w) > crop
    part = cv2.resize(
        part, (crop, crop), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    if rng.random() < 0.5:
        part = part[:, ::-1]
    brightness, contrast, saturation = rng.uniform(1 - jitter, 1 + jitter, 3).astype(np.float32)
    pixels = part.astype(np.float32) * brightness
    pixels = (pixels - pixels.mean()) * contrast + pixels.mean()
    grey = pixels.mean(axis=2, keepdims=True)
    return np.clip((pixels - grey) * saturation + grey, 0, 255).astype(np.uint8)
