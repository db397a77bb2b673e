"""Padded sizes against Detectron's rule on VOC's sizes of images, and boxes there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.bench.padding import padding_of, voc2007
from weaksam_jax.data.padding import resize_and_pad
from weaksam_jax.data.records import TagRecord
from weaksam_jax.data.scales import (
    bucket_of,
    check_scales,
    padded_sizes,
    shared_sizes,
    shown_at,
)
from weaksam_jax.data.views import fitted_size, place_boxes, restore_boxes, views_of
from weaksam_jax.errors import BadInput

PAPER = (480, 576, 688, 864, 1000, 1200)


def image(width, height):
    return TagRecord(1, "a.jpg", None, width, height, ())


def shown_and_asked(record, scales, number):
    """(padded size, the image's scale in it, the scale that Detectron's rule asks for)."""
    shown = shown_at(scales[number], bucket_of(record, scales))
    short, long = sorted((record.width, record.height))
    asked = min(PAPER[number] / short, 2000 / long)
    return shown.padded, shown.fit(record.height, record.width), asked


SEPARATE = [padded_sizes(side, 2000) for side in PAPER]
SHARED = shared_sizes(PAPER, 2000)


@pytest.mark.parametrize("scales", [SEPARATE, SHARED], ids=["separate", "shared"])
@given(st.integers(40, 1500), st.integers(40, 1500))
def test_every_image_is_shown_at_the_size_that_is_asked_for(scales, width, height):
    for number in range(len(scales)):
        padded, shown, asked = shown_and_asked(image(width, height), scales, number)
        assert 0.99 * asked <= shown <= asked * (1 + 1e-9)
        assert shown * height <= padded[0] + 1e-6 and shown * width <= padded[1] + 1e-6


@pytest.mark.parametrize(
    ("scales", "programs", "padding"),
    [
        (SEPARATE, 36, 0.035),
        ([padded_sizes(side, 2000, aspects=(3 / 2,)) for side in PAPER], 24, 0.097),
        (SHARED, 20, 0.048),
        (shared_sizes(PAPER, 2000, portrait=(4 / 3, 3 / 2)), 26, 0.036),
    ],
    ids=["separate", "separate, 3:2", "shared", "shared, portraits too"],
)
def test_padding_and_programs_of_photographs(scales, programs, padding):
    """Of 2000 photographs of VOC2007: the padded sizes, and the share of pixels that are padding;
    `experiments.bench padding` counts the same."""
    assert padding_of(voc2007(), scales, (1.0, 1.0))["padding"] == pytest.approx(padding, abs=0.001)
    assert len({padded for scale in scales for padded in scale}) == programs
    area = used = 0.0
    for number in range(len(PAPER)):
        for size, count in voc2007().items():
            record = image(*size)
            padded, shown, asked = shown_and_asked(record, scales, number)
            assert shown >= 0.99 * asked
            area += count * padded[0] * padded[1]
            used += count * shown**2 * record.width * record.height
    assert 1 - used / area == pytest.approx(padding, abs=0.002)


def test_long_images_of_a_small_scale_are_shown_in_sizes_of_larger_ones():
    small, large = SHARED[0], SHARED[-1]
    assert small[:2] == ((480, 640), (480, 720)) and (1200, 2000) in large
    for shape, padded in (((1000, 560), (576, 864)), ((1000, 510), (688, 1032)),
                          ((1000, 250), (1200, 2000)), ((300, 1000), (2000, 1200))):  # fmt: skip
        assert small[bucket_of(image(*shape), SHARED)] == padded
    with pytest.raises(BadInput, match="short side 900"):
        shared_sizes((480, 900), 800)


def test_a_size_that_has_the_scale_s_own_short_side_is_filled():
    """As without the rule of the short side: what the smaller recipes were trained with."""
    rng = np.random.default_rng(0)
    for scale in (((160, 192), (192, 160)), ((448, 576), (576, 448)), ((192, 192),)):
        for height, width in rng.integers(40, 900, (200, 2)).tolist():
            bucket = bucket_of(image(width, height), (scale,))
            padded = scale[bucket]
            fit = min(padded[0] / height, padded[1] / width)
            assert shown_at(scale, bucket).fit(height, width) == fit


def test_padded_sizes_of_the_paper_are_exact():
    assert padded_sizes(480, 2000) == (
        *((480, 640), (480, 720), (480, 2000)),
        *((640, 480), (720, 480), (2000, 480)),
    )
    assert padded_sizes(1200, 2000)[:3] == ((1200, 1600), (1200, 1800), (1200, 2000))
    for side in (*PAPER, 800, 488):
        sides = np.asarray(padded_sizes(side, 2000))
        assert sides.min() == side and sides.max() == 2000 and not (sides % 8).any()
    assert np.asarray(padded_sizes(688, 2000, 32)).min() == 704
    assert padded_sizes(400, 500)[:3] == ((400, 496), (400, 496), (400, 496))  # the limit bites
    with pytest.raises(BadInput, match="short side 900"):
        padded_sizes(900, 800)


@given(st.integers(10, 600), st.integers(10, 600))
def test_of_a_size_and_its_transpose_the_one_with_less_padding_is_chosen(width, height):
    def unused(padded):
        scale = min(padded[0] / height, padded[1] / width)
        return padded[0] * padded[1] - scale * scale * width * height

    for scale in (((160, 192), (192, 160)), ((448, 576), (576, 448))):
        padded = scale[bucket_of(image(width, height), (scale,))]
        assert unused(padded) <= min(map(unused, scale)) * (1 + 1e-9)


def test_scales_need_as_many_padded_sizes_each():
    check_scales([padded_sizes(480, 2000), padded_sizes(1200, 2000)])
    for scales in ([], [()], [((8, 8),), ((8, 8), (4, 4))]):
        with pytest.raises(BadInput, match="scales"):
            check_scales(scales)


def test_fourteen_views_are_seven_scales_plain_and_flipped():
    scales = [padded_sizes(side, 2000) for side in (800, *PAPER)]
    views = views_of(scales)
    assert len(views) == len(set(views)) == 14
    assert [view.scale for view in views_of(scales, tta_flip=False)] == list(range(7))


@given(st.integers(20, 400), st.integers(20, 400), st.booleans(), st.integers(0, 2**32 - 1))
def test_boxes_come_back_cut_to_the_image(width, height, flip, seed):
    """Places of pixels that resize_and_pad really moves, and boxes that reach beyond."""
    rng, record = np.random.default_rng(seed), image(width, height)
    boxes = np.sort(rng.uniform(-20, 420, (5, 2, 2)), axis=1).reshape(5, 4).astype(np.float32)
    scales = shared_sizes((64, 96), 160)
    shown = shown_at(scales[0], bucket_of(record, scales))
    pixels = np.zeros((height, width, 3), np.uint8)
    how = {"scale": shown.fit(height, width), "flip": flip}
    _, there, size = resize_and_pad(pixels, boxes, shown.padded, **how)
    assert size == fitted_size(record, shown)
    np.testing.assert_allclose(place_boxes(boxes, record, size, flip), there, atol=1e-3)
    cut = np.clip(boxes, 0, [width, height, width, height])
    original = np.float32([height, width])
    back = restore_boxes(there, np.float32(size), original, flip)
    np.testing.assert_allclose(back, cut, atol=2e-3)
    on_device = jax.vmap(restore_boxes)(
        *(jnp.asarray(x)[None] for x in (there, np.float32(size), original, flip))
    )
    np.testing.assert_allclose(on_device[0], back, atol=1e-3)
