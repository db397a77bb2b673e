"""Masks from files: the same as pycocotools makes of them, or refused before it sees them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from weaksam_jax.data.masks import encode_mask, plain_masks, read_mask

HEIGHT, WIDTH = 30, 40
NAN, INF = float("nan"), float("inf")


def random_mask(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((HEIGHT, WIDTH)) < rng.choice([0, 0.02, 0.5, 0.98, 1])
    mask[: rng.integers(HEIGHT), : rng.integers(WIDTH)] ^= True
    return mask


def runs_of(mask):
    """COCO's uncompressed counts, counted by hand."""
    flat = np.concatenate([[0], mask.ravel(order="F").astype(int)])
    changes = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()


@given(st.integers(0, 10_000))
def test_every_form_of_runs_is_the_same_mask(seed):
    mask, rng = random_mask(seed), np.random.default_rng(seed)
    whole = encode_mask(mask)
    np.testing.assert_array_equal(coco_mask.decode(whole).astype(bool), mask)
    runs = runs_of(mask)
    split = list(runs)
    for _ in range(rng.integers(1, 4)):  # a run of no length divides another
        at = int(rng.integers(len(split)))
        part = int(rng.integers(split[at] + 1))
        split[at : at + 1] = [part, 0, split[at] - part]
    code = coco_mask.frPyObjects({"size": [HEIGHT, WIDTH], "counts": split}, HEIGHT, WIDTH)
    texts = [str(one) for one in runs]
    for counts in (whole["counts"], runs, split, texts, code["counts"].decode()):
        size = [HEIGHT, WIDTH]
        assert read_mask({"size": size, "counts": counts}, HEIGHT, WIDTH) == whole
    assert plain_masks([whole], [[HEIGHT, WIDTH]])


@given(st.integers(0, 10_000))
def test_polygons_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    corner = [rng.integers(-20, 60, (rng.integers(3, 9), 2)) / 1.5 for _ in range(2)]
    polygons = [np.clip(one, -HEIGHT, 2 * HEIGHT).ravel().tolist() for one in corner]
    want = coco_mask.merge(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH))
    found = read_mask(polygons, HEIGHT, WIDTH)
    assert found == {"size": [HEIGHT, WIDTH], "counts": want["counts"].decode()}


def test_a_polygon_is_where_pillow_draws_it():
    points = [(5, 4), (30, 6), (25, 25), (8, 20)]
    image = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(image).polygon(points, fill=1)
    drawn = np.asarray(image).astype(bool)
    found = coco_mask.decode(read_mask([[v for p in points for v in p]], HEIGHT, WIDTH))
    both, either = (found.astype(bool) & drawn).sum(), (found.astype(bool) | drawn).sum()
    assert both / either > 0.85  # Pillow draws the border, too


def test_no_mask():
    assert read_mask(None, HEIGHT, WIDTH) is None and read_mask([], HEIGHT, WIDTH) is None


SIZE = {"size": [HEIGHT, WIDTH]}
GOOD = encode_mask(random_mask(3))
BAD = {
    "is neither polygons nor RLE": ["", "text", 5, True, 1.5, (1, 2)],
    "is no list of polygons": [[1, 2, 3, 4, 5, 6], ["x"], [None], [[0, 0, 9, 0, 9, 9], {}]],
    "polygon of": [[[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [[0, 0, 9, 0, 9, 9], [1]]],
    "has a corner that": [[[1, 2, NAN, 4, 5, 6]], [[1, 2, INF, 4, 5, 6]], [[1, 2, "x", 4, 5, 6]],
                          [[1, 2, None, 4, 5, 6]], [[1, 2, True, 4, 5, 6]],
                          [[1, 2, [3], 4, 5, 6]], [[1, 2, 10**400, 4, 5, 6]]],
    "outside": [[[-160, -220, 2e8, 3.5e8, 225, 236, 270, 380]], [[0, 0, 81, 0, 9, 9]],
                [[0, 0, 9, -31, 9, 9]]],
    "outline": [[[-40, -30, 80, 60] * 2000]],
    "has size": [{}, {"counts": GOOD["counts"]}, {**GOOD, "size": [60, 80]}, {**GOOD, "size": None},
                 {**GOOD, "size": [WIDTH, HEIGHT]}, {**GOOD, "size": HEIGHT * WIDTH},
                 {**GOOD, "size": [HEIGHT]}, {**GOOD, "size": [HEIGHT, WIDTH, 1]},
                 {**GOOD, "size": [2**31, 2**31]}],
    "has a size that": [{**GOOD, "size": [HEIGHT, None]}, {**GOOD, "size": [HEIGHT, -WIDTH]}],
    "has counts that are neither": [SIZE, {**SIZE, "counts": None}, {**SIZE, "counts": 5},
                                    {**SIZE, "counts": {}}],
    "has counts that are no RLE code": [
        {**SIZE, "counts": one} for one in ("", "garbage!", "0`", "é1", "0 1", "P" * 9, "oooooooo0",
                                            "0\x00", GOOD["counts"] + "o", "N")],
    "has a count that": [{**SIZE, "counts": one} for one in ([-1, 1201], [None], [1.5], [True],
                                                             [10**400], ["a"], [[1200]])],
    "has runs of": [{**SIZE, "counts": one} for one in ([], [0], [1199], [1201], [600, 601],
                                                        [2**62] * 4, [2**62] * 3 + [2**62 + 1200])]
    + [{**SIZE, "counts": encode_mask(np.ones((3, 5)))["counts"]},
       {**SIZE, "counts": GOOD["counts"] + "5"}],
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_bad_masks_are_refused(fault):
    for shape in BAD[fault]:
        with pytest.raises(ValueError, match=fault):
            read_mask(shape, HEIGHT, WIDTH)
        assert not plain_masks([GOOD, shape], [[HEIGHT, WIDTH]] * 2)


@given(st.integers(0, 100_000))
def test_a_changed_code_is_refused_or_is_what_pycocotools_reads(seed):
    rng = np.random.default_rng(seed)
    code = list(encode_mask(random_mask(seed))["counts"])
    code[rng.integers(len(code))] = chr(rng.integers(40, 120))
    shape = {"size": [HEIGHT, WIDTH], "counts": "".join(code)}
    plain = plain_masks([shape], [[HEIGHT, WIDTH]])
    try:
        found = read_mask(shape, HEIGHT, WIDTH)
    except ValueError:
        assert not plain
        return
    np.testing.assert_array_equal(coco_mask.decode(found), coco_mask.decode(shape))
    assert plain == (found == shape)


def test_many_masks_are_checked_at_once():
    masks = [encode_mask(random_mask(seed)) for seed in range(300)]
    sizes = [[HEIGHT, WIDTH]] * 300
    assert plain_masks(masks, sizes)
    for place in (0, 150, 299):
        bad = {**masks[place], "counts": masks[place]["counts"] + "1"}
        assert not plain_masks([*masks[:place], bad, *masks[place + 1 :]], sizes)
    assert plain_masks([], [])
