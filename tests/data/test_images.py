import numpy as np
import pytest
from folders import write_image
from PIL import Image, ImageOps

from weaksam_jax.data.images import image_size, load_image
from weaksam_jax.errors import BadInput


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_agrees_with_pil(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    path = write_image(tmp_path / "a.png", 20, 10, exif=exif)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    loaded = load_image(path)
    np.testing.assert_array_equal(loaded, upright)
    assert image_size(path) == loaded.shape[1::-1]
    assert (image_size(path) == (10, 20)) == (orientation >= 5)


def test_rotated_jpeg_of_a_phone(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # the sensor's left column is the picture's top row
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    loaded = load_image(tmp_path / "a.jpg")
    assert loaded.shape == (32, 16, 3) and image_size(tmp_path / "a.jpg") == (16, 32)
    assert loaded[:14].min() > 200 and loaded[18:].max() < 55


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "P", "RGBA", "LA", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    if mode == "I;16":
        image = Image.fromarray(np.full((10, 20), 128 * 256 + 77, np.uint16))
    else:
        image = Image.new("RGB", (20, 10), (128, 128, 128))
        image = image.quantize(4) if mode == "P" else image.convert(mode)
    assert image.mode == mode
    image.save(tmp_path / f"a.{suffix}")
    loaded = load_image(tmp_path / f"a.{suffix}")
    assert loaded.shape == (10, 20, 3) and loaded.dtype == np.uint8
    if mode != "1":
        assert np.abs(loaded.astype(int) - 128).max() <= 4


def test_transparent_pixels_become_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded[0, 0].tolist() == [10, 20, 30]
    assert (loaded[1:] == 255).all()


def test_transparent_palette_color_becomes_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.save(tmp_path / "a.png", transparency=1)
    assert load_image(tmp_path / "a.png").tolist() == [[[200, 0, 0], [255, 255, 255]]]


def test_missing_truncated_and_no_image(tmp_path):
    path = write_image(tmp_path / "cut.jpg", 200, 100)
    path.write_bytes(path.read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name, word in (
        ("none.jpg", "does not exist"), ("cut.jpg", "truncated"), ("text.jpg", "cannot"),
        ("empty.jpg", "cannot"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=word) as caught:
            load_image(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    assert image_size(tmp_path / "cut.jpg") == (200, 100)  # the header is whole
    for name in ("none.jpg", "text.jpg", "empty.jpg"):
        with pytest.raises(BadInput):
            image_size(tmp_path / name)


def test_broken_exif_is_shown_as_it_is(tmp_path):
    path = write_image(tmp_path / "a.jpg", 20, 10, exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff\xff")
    assert image_size(path) == (20, 10) and load_image(path).shape == (10, 20, 3)
