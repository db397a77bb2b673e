"""Masks on pictures: the blend by its formula, and large photos in little time."""

import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from weaksam_jax.report.draw import draw_masks, save_png

COLOR = (230, 159, 1)


def disc(height, width):
    y, x = np.mgrid[:height, :width]
    return (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 3) ** 2


def rle(mask):
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))


@pytest.mark.parametrize("scale", [1, 2])
def test_inside_half_the_colour_outside_nothing(scale):
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    mask, before = disc(90, 120), image.copy()
    drawn = draw_masks(image, [rle(mask)], [0], [COLOR], scale=scale)
    plain = draw_masks(image, [], [], [COLOR], scale=scale)
    assert (image == before).all() and drawn.shape == (90 * scale, 120 * scale, 3)
    mask = np.repeat(np.repeat(mask, scale, 0), scale, 1)
    inner = mask & np.roll(mask, 5, 0) & np.roll(mask, -5, 0)
    inner &= np.roll(mask, 5, 1) & np.roll(mask, -5, 1)
    outer = ~(mask | np.roll(mask, 5, 0) | np.roll(mask, -5, 0))
    outer &= ~(np.roll(mask, 5, 1) | np.roll(mask, -5, 1))
    blend = (0.5 * plain + 0.5 * np.asarray(COLOR)).round().astype(np.uint8)
    assert inner.sum() > 100 and outer.sum() > 100
    np.testing.assert_array_equal(drawn[inner], blend[inner])
    np.testing.assert_array_equal(drawn[outer], plain[outer])


def test_a_large_picture_is_written_whole_and_soon(tmp_path):
    tile = np.random.default_rng(0).integers(0, 256, (50, 800, 3)).astype(np.uint8)
    picture = np.tile(tile, (48, 3, 1))  # optimizing it would take 20 seconds
    begun = time.process_time()
    save_png(tmp_path / "a.png", picture)
    assert time.process_time() - begun < 5
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)
    small = BytesIO()
    Image.fromarray(tile).save(small, "PNG", optimize=True)
    save_png(tmp_path / "b.png", tile)
    own = (tmp_path / "b.png").read_bytes()  # optimized, too; a line of text says whose it is
    assert 0 < len(own) - len(small.getvalue()) < 100
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")), tile)
