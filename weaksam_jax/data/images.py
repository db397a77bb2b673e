"""Images: uint8 RGB, upright. The one place where EXIF orientation is handled."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from weaksam_jax.errors import BadFile, BadInput
from weaksam_jax.files import check_regular

# TIFF's own tags, of which EXIF's orientation (values 1..8) is one.
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 262, 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HINT = "replace the file or take it out of the list"
# What Pillow finds odd and reads all the same (broken EXIF, 90 megapixels) is nothing to be told.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Pillow reads these formats' 16-bit grey as 32-bit integers up to 65535.
_GREY16_AS_32 = ("PNG", "PPM")


def load_image(path: str | Path) -> np.ndarray:
    """Decodes an image: uint8 RGB `[H, W, 3]`, upright by its EXIF or TIFF orientation.

    Grey, 16-bit, CMYK and palette images are converted; transparent pixels are laid on white; of
    an animation the first frame is taken. Raises `BadInput` when the file is missing, no image,
    truncated, absurdly large, or has pixels of 32 bits or floats (which values are black and white
    cannot be told).
    """
    with opened_image(path) as image:
        image.load()
        orientation = _orientation(image)  # 1 in a TIFF: Pillow has turned it while loading
        upright = _to_rgb(image)
        if orientation in _UPRIGHT:
            upright = upright.transpose(_UPRIGHT[orientation])
        return np.array(upright)


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) in pixels of the upright image, from the file's header (nothing is decoded).

    Raises `BadInput` when the file is missing or its header is no image's.
    """
    with opened_image(path) as image:
        width, height = image.size
        if image.format == "TIFF":  # some versions of Pillow swap `size` already
            width, height = image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
        return (height, width) if _orientation(image) >= 5 else (width, height)


@contextmanager
def opened_image(path: str | Path, what: str = "image") -> Iterator[Image.Image]:
    """Pillow's image of a file, not yet decoded; what goes wrong with it becomes `BadInput`.

    what: what the file is called in the error.
    """
    try:
        check_regular(path)
    except BadFile as error:
        raise BadInput(path, f"{what} {error.problem}", "restore it or correct its name") from error
    try:
        with Image.open(path) as image:
            if image.format == "EPS":  # Pillow would start Ghostscript
                raise ValueError("EPS holds a program, not pixels")
            yield image
    except Exception as error:  # of broken files Pillow raises nearly every kind
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "its format is not known"
        raise BadInput(path, f"{what} cannot be read ({reason})", _HINT) from error


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
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _GREY16_AS_32):
        return Image.fromarray(_grey8(image)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floats"
        raise ValueError(f"its pixels are {kind}, without a known white; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _grey8(image: Image.Image) -> np.ndarray:
    """uint8 `[H, W]` of 16-bit grey (or the 12 bits of which a TIFF says so)."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    bits = int(np.ravel(tags.get(_BITS, 16))[0])
    grey = (np.asarray(image).astype(np.uint16) >> (bits - 8)).astype(np.uint8)
    # Pillow inverts TIFFs of which 0 is white, but not those of 16 bits.
    return 255 - grey if tags.get(_PHOTOMETRIC) == 0 else grey
