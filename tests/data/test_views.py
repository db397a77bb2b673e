"""Padded sizes against Detectron's rule on VOC's sizes of images, and boxes there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weaksam_jax.data.padding import resize_and_pad
from weaksam_jax.data.records import TagRecord
from weaksam_jax.data.scales import bucket_of, check_scales, padded_sizes
from weaksam_jax.data.views import fitted_size, place_boxes, restore_boxes, views_of
from weaksam_jax.errors import BadInput

PAPER = (480, 576, 688, 864, 1000, 1200)
# (width, height) -> how many of 2000 photographs of VOC2007 have that size: the 20 most frequent
# ones, then the others with their aspect rounded.
VOC_SIZES = {
    (500, 375): 830, (500, 333): 306, (375, 500): 164, (333, 500): 62, (500, 332): 54,
    (500, 334): 41, (500, 335): 22, (500, 374): 18, (500, 331): 15, (332, 500): 13,
    (500, 357): 13, (334, 500): 11, (335, 500): 10, (500, 281): 8, (500, 329): 7,
    (500, 500): 6, (480, 360): 6, (500, 322): 5, (374, 500): 5, (500, 338): 5,
}  # fmt: skip
LANDSCAPE = {1.0: 6, 1.1: 18, 1.2: 29, 1.3: 64, 1.4: 51, 1.5: 52, 1.6: 29, 1.7: 11, 1.8: 6,
             2.0: 16, 2.5: 9, 3.2: 3}  # fmt: skip
PORTRAIT = {1.0: 4, 1.1: 10, 1.2: 14, 1.3: 17, 1.4: 21, 1.5: 23, 1.6: 4, 1.7: 3, 1.8: 4,
            2.0: 3, 2.5: 2}  # fmt: skip


def image(width, height):
    return TagRecord(1, "a.jpg", None, width, height, ())


def voc_images():
    sizes = [(size, count) for size, count in VOC_SIZES.items()]
    sizes += [((500, round(500 / a) + 1), n) for a, n in LANDSCAPE.items()]
    sizes += [((round(500 / a) + 1, 500), n) for a, n in PORTRAIT.items()]
    return [(image(*size), count) for size, count in sizes]


def shown_and_asked(record, scales, number):
    """(padded size, its scale of the image, the scale that Detectron's rule asks for)."""
    padded = scales[number][bucket_of(record, scales)]
    short, long = sorted((record.width, record.height))
    asked = min(PAPER[number] / short, 2000 / long)
    return padded, min(padded[0] / record.height, padded[1] / record.width), asked


@given(st.integers(40, 1500), st.integers(40, 1500))
def test_every_image_is_shown_at_the_size_that_is_asked_for(width, height):
    scales = [padded_sizes(side, 2000) for side in PAPER]
    for number in range(len(scales)):
        _, shown, asked = shown_and_asked(image(width, height), scales, number)
        assert 0.99 * asked <= shown <= asked * (1 + 1e-9)


def test_padding_and_programs_are_those_that_the_docstring_names():
    for aspects, programs, padding in (((4 / 3, 3 / 2), 36, 0.06), ((3 / 2,), 24, 0.13)):
        scales = [padded_sizes(side, 2000, aspects=aspects) for side in PAPER]
        assert len({padded for scale in scales for padded in scale}) <= programs
        ratios = []
        for number in range(len(PAPER)):
            area = used = 0.0
            for record, count in voc_images():
                padded, shown, asked = shown_and_asked(record, scales, number)
                assert shown >= 0.99 * asked
                area += count * padded[0] * padded[1]
                used += count * shown**2 * record.width * record.height
            ratios.append(area / used - 1)
        assert np.mean(ratios) == pytest.approx(padding, abs=0.01)


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
    padded = padded_sizes(64, 160)[bucket_of(record, [padded_sizes(64, 160)])]
    pixels = np.zeros((height, width, 3), np.uint8)
    _, there, size = resize_and_pad(pixels, boxes, padded, flip=flip)
    assert size == fitted_size(record, padded)
    np.testing.assert_allclose(place_boxes(boxes, record, size, flip), there, atol=1e-3)
    cut = np.clip(boxes, 0, [width, height, width, height])
    original = np.float32([height, width])
    back = restore_boxes(there, np.float32(size), original, flip)
    np.testing.assert_allclose(back, cut, atol=2e-3)
    on_device = jax.vmap(restore_boxes)(
        *(jnp.asarray(x)[None] for x in (there, np.float32(size), original, flip))
    )
    np.testing.assert_allclose(on_device[0], back, atol=1e-3)
