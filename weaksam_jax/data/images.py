"""Images: uint8 RGB, upright. The one place where EXIF orientation is handled."""

from pathlib import Path

import numpy as np
from PIL import Image

from weaksam_jax.errors import BadInput

_ORIENTATION = 274  # EXIF tag "Orientation", values 1..8
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HINT = "replace the file or take it out of the data set"
# What PIL raises on files that are missing, no image, cut short, broken or absurdly large.
_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def load_image(path: str | Path) -> np.ndarray:
    """Decodes an image: uint8 RGB `[H, W, 3]`, upright by its EXIF orientation.

    Grey, 16-bit, CMYK and palette images are converted; transparent pixels are laid on white.
    Raises `BadInput` when the file is missing, no image, or truncated.
    """
    try:
        with Image.open(path) as image:
            image.load()
            orientation = _orientation(image)
            image = _to_rgb(image)
            if orientation in _UPRIGHT:
                image = image.transpose(_UPRIGHT[orientation])
            return np.array(image)
    except _ERRORS as error:
        raise _bad_image(path, error) from error


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) in pixels of the upright image, from the file's header (nothing is decoded).

    Raises `BadInput` when the file is missing or its header is no image's.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if _orientation(image) >= 5 else (width, height)
    except _ERRORS as error:
        raise _bad_image(path, error) from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 (upright) when there is none or the EXIF block is broken."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # PIL raises many kinds on broken EXIF; viewers show such a file as it is
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey, e.g. PNG
        return Image.fromarray(
            (np.asarray(image).astype(np.int64) // 256).astype(np.uint8)
        ).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _bad_image(path: str | Path, error: Exception) -> BadInput:
    if isinstance(error, FileNotFoundError):
        return BadInput(path, "image does not exist", "restore it or take it out of the list")
    return BadInput(path, f"image cannot be read ({error})", _HINT)
