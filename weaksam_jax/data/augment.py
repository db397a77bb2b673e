"""Noise on the pixels of training images."""

import numpy as np

# Of the colours of ImageNet's training images, RGB in [0, 1] (Krizhevsky et al. 2012, section 4.1):
# eigenvalues of the covariance's square root, and eigenvectors in columns.
LIGHT_VALUES = np.asarray([0.2175, 0.0188, 0.0045])
LIGHT_VECTORS = np.asarray(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


def jitter_colour(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Random gain of each channel and random brightness; the padding (0) stays 0."""
    gain = rng.uniform(1 - amount, 1 + amount, 3).astype(np.float32)
    shifted = image * gain + np.float32(rng.uniform(-amount, amount) * 64) * (image > 0)
    return np.clip(shifted, 0, 255).astype(np.uint8)


def hide_patches(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The image with about `share` of its 24-pixel patches set to the mean grey.

    Hide-and-Seek (Singh and Lee 2017): with the telling part out of sight the rest must tell.
    """
    height, width = image.shape[:2]
    hidden = rng.random((height // 24 + 2, width // 24 + 2)) < share
    top, left = rng.integers(0, 24, 2)
    rows, columns = (np.arange(height) + top) // 24, (np.arange(width) + left) // 24
    return np.where(hidden[rows][:, columns, None], np.uint8(127), image)


def light_noise(image: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """AlexNet's lighting noise: one random shift of RGB, along the principal colours.

    image: uint8 RGB `[H, W, 3]`. std: of the three coefficients, 0.1 in the released MIST code
    (grey moves by 3.2 levels then, one standard deviation). The result is rounded and cut to
    uint8, which the release's floats are not.
    """
    shift = 255 * LIGHT_VECTORS @ (LIGHT_VALUES * rng.normal(0, std, 3))
    return np.clip(np.round(image + shift), 0, 255).astype(np.uint8)
