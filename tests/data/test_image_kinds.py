"""Images of every kind: upright, with the right colours, or refused in one line."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from folders import write_image
from PIL import Image
from refusals import refusal

from weaksam_jax.data.images import image_size, load_image
from weaksam_jax.errors import BadInput

# Rows and columns of the stored picture that are the upright one's, from EXIF's table.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
LOSSLESS = {
    "png": {},
    "webp": {"lossless": True},
    "tif": {},
    "tiff": {"compression": "tiff_lzw"},
    "TIF": {"compression": "tiff_deflate"},
}


def refused(path, *words) -> None:
    for read in (load_image, image_size):
        refusal(read, path, *words)


@pytest.mark.parametrize("suffix", [*LOSSLESS, "jpg"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_orientation_of_every_format(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    small = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
    stored = small.repeat(8, axis=0).repeat(8, axis=1)
    options = LOSSLESS.get(suffix, {"quality": 98, "subsampling": 0})
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif, **options)
    loaded, expected = load_image(tmp_path / f"a.{suffix}"), UPRIGHT[orientation](stored)
    assert image_size(tmp_path / f"a.{suffix}") == expected.shape[1::-1] == loaded.shape[1::-1]
    error = np.abs(loaded.astype(int) - expected).max()
    assert error <= (12 if suffix == "jpg" else 0)


def tiff(path, pixels: np.ndarray, photometric: int = 1) -> None:
    """A grey TIFF, written by hand: one strip of little-endian samples."""
    height, width = pixels.shape
    bits = pixels.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: height, 279: pixels.nbytes, 339: kind}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + pixels.nbytes)
    path.write_bytes(head + pixels.tobytes() + struct.pack("<H", len(tags)) + entries + bytes(4))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_16_bits_are_scaled(tmp_path, suffix):
    grey = np.linspace(0, 65535, 16 * 16).round().astype(np.uint16).reshape(16, 16)
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        tiff(path, grey)
    elif suffix == "pgm":
        path.write_bytes(b"P5 16 16 65535\n" + grey.astype(">u2").tobytes())
    else:
        Image.fromarray(grey).save(path)
    assert (load_image(path) == (grey // 256)[..., None]).all()


def test_16_bits_of_which_0_is_white(tmp_path):
    grey = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4)
    tiff(tmp_path / "a.tif", grey, photometric=0)
    assert (load_image(tmp_path / "a.tif")[..., 0] == 255 - grey // 256).all()


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint32", "int16"])
def test_pixels_without_a_known_white_are_refused(tmp_path, dtype):
    tiff(tmp_path / "a.tif", np.full((4, 6), 0.5 if dtype == "float32" else 300).astype(dtype))
    assert image_size(tmp_path / "a.tif") == (6, 4)
    with pytest.raises(BadInput, match=r"a\.tif: image cannot be read .*save it with 8 or 16 bits"):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_has_its_colours(tmp_path, suffix):
    """Pillow writes JPEGs inverted, with Adobe's mark, as Photoshop does."""
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / f"a.{suffix}")
    assert np.abs(load_image(tmp_path / f"a.{suffix}").astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (12, 10), one) for one in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert np.abs(load_image(tmp_path / f"a.{suffix}").astype(int) - [255, 0, 0]).max() <= 2
    assert image_size(tmp_path / f"a.{suffix}") == (12, 10)


@pytest.mark.parametrize(
    ("mode", "color", "transparent"),
    [("1", 0, 0), ("L", 7, 7), ("LA", (9, 0), None), ("RGBA", (1, 2, 3, 0), None)],
)
def test_what_is_transparent_is_white(tmp_path, mode, color, transparent):
    image = Image.new(mode, (6, 5), color)
    options = {} if transparent is None else {"transparency": transparent}
    image.save(tmp_path / "a.png", **options)
    assert (load_image(tmp_path / "a.png") == 255).all()


@pytest.mark.parametrize("size", [(1, 64), (64, 1), (2000, 40), (1, 1)])
def test_odd_sizes(tmp_path, size):
    path = write_image(tmp_path / "a.png", *size)
    with Image.open(path) as image:
        np.testing.assert_array_equal(load_image(path), np.asarray(image))
    assert image_size(path) == size


def test_remarks_of_pillow_are_no_lines_of_ours(tmp_path):
    """A broken EXIF block, which Pillow warns of, is passed over."""
    broken = b"Exif\x00\x00MM\x00*\x00\x00\xff\xff\xff"
    path = write_image(tmp_path / "a.jpg", 20, 10, exif=broken)
    code = f"from weaksam_jax.data.images import load_image; print(load_image({str(path)!r}).shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(10, 20, 3)\n", "")


def png_of_size(path, width: int, height: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_what_is_no_image_is_refused_at_once(tmp_path):
    png_of_size(tmp_path / "bomb.png", 60_000, 60_000)
    refused(tmp_path / "bomb.png", "decompression bomb")
    png_of_size(tmp_path / "none.png", 0, 5)
    refused(tmp_path / "none.png", "cannot be read")
    os.mkfifo(tmp_path / "pipe.jpg")
    refused(tmp_path / "pipe.jpg", "a pipe")
    (tmp_path / "folder.jpg").mkdir()
    refused(tmp_path / "folder.jpg", "a folder")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    refused(tmp_path / "a.eps", "holds a program")
    for data in (b"", b"\xff\xd8", b"II*\0" + b"\xff" * 40, b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 "):
        (tmp_path / "a.jpg").write_bytes(data)
        refused(tmp_path / "a.jpg", "cannot be read")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "gif", "bmp", "ppm"])
def test_no_damage_makes_a_trace(tmp_path, suffix):
    """Cut or with random bytes: an image of some kind, or refused."""
    whole = write_image(tmp_path / f"a.{suffix}", 40, 30).read_bytes()
    rng, refusals = np.random.default_rng(0), 0
    for kind in range(40):
        data = bytearray(whole[: rng.integers(len(whole))] if kind % 4 == 0 else whole)
        for place in rng.integers(0, max(min(len(data), 120), 1), 3 * (kind % 4)):
            data[place] = rng.integers(256)
        (tmp_path / "b").write_bytes(data)
        try:
            found = load_image(tmp_path / "b")
        except BadInput:
            refusals += 1
        else:
            assert found.dtype == np.uint8 and found.ndim == 3
    assert refusals > 0
