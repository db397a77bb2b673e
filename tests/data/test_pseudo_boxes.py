"""Pseudo boxes as training samples: they follow the pixels through augmentation."""

import numpy as np
import pytest
from small_faster_rcnn import COLOURS, colour_box, write_rectangles

from weaksam_jax.data.augment import AugmentConfig, crop_and_resize, recolour
from weaksam_jax.data.detections import naming
from weaksam_jax.data.pseudo_boxes import PseudoSamples
from weaksam_jax.data.scales import Shown
from weaksam_jax.errors import BadInput

SHOWN = Shown((64, 96), 64)


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory):
    return write_rectangles(tmp_path_factory.mktemp("rectangles"))


def test_boxes_follow_the_pixels_through_augmentation(rectangles):
    split, pgt = rectangles
    config = AugmentConfig(scale=(0.6, 1.8), flip=0.5, colour=0.0)
    samples = PseudoSamples(pgt, split, (((64, 96),),), config)
    assert len(samples) == 5 and samples.max_boxes == 8
    checked = cropped = 0
    for index in range(5):
        for seed in range(12):
            sample = samples(index, SHOWN, np.random.default_rng(seed))
            assert sample["image"].shape == (64, 96, 3) and sample["image"].dtype == np.uint8
            height, width = sample["size"].astype(int)
            assert not sample["image"][height:].any() and not sample["image"][:, width:].any()
            count = int(sample["valid"].sum())
            cropped += count < 2
            for box, label in zip(sample["boxes"][:count], sample["labels"], strict=False):
                seen = colour_box(sample["image"], COLOURS[label])
                np.testing.assert_allclose(box, seen, atol=1.6)
                checked += 1
            assert not sample["boxes"][count:].any()
    assert checked > 60 and cropped > 0


def test_an_example_is_a_batch_of_one(rectangles):
    split, pgt = rectangles
    samples = PseudoSamples(pgt, split, (((64, 96),),), AugmentConfig())
    sample, example = samples(0, SHOWN, np.random.default_rng(1)), samples.example()
    assert {name: np.shape(value) for name, value in example.items()} == {
        name: (1, *np.shape(value)) for name, value in sample.items()
    }


def test_a_crop_always_keeps_an_object():
    image = np.full((50, 50, 3), 90, np.uint8)
    box = np.array([[40, 40, 48, 48]], np.float32)
    config = AugmentConfig(scale=(1.5, 2.0))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        _, _, inside, _ = crop_and_resize(image, box, Shown((50, 50), 50), rng, config)
        assert inside.all()


def test_recolour_keeps_grey_grey_and_the_range():
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    np.testing.assert_array_equal(recolour(image, np.random.default_rng(1), 0.0), image)
    grey = np.repeat(image[..., :1], 3, axis=2)
    changed = recolour(grey, np.random.default_rng(1), 0.4)
    assert changed.dtype == np.uint8 and (changed != grey).any()
    assert np.ptp(changed.astype(int), axis=2).max() <= 1


def test_pseudo_boxes_that_do_not_fit_the_split_are_bad_input(rectangles):
    split, pgt = rectangles
    with pytest.raises(BadInput, match="no box"):
        PseudoSamples({"annotations": []}, split, (((64, 64),),), AugmentConfig())
    for wrong in ({"image_id": 99}, {"category_id": 1}):
        annotations = [{**pgt["annotations"][0], **wrong}]
        with pytest.raises(BadInput, match="does not have"):
            PseudoSamples({"annotations": annotations}, split, (((64, 64),),), AugmentConfig())


def test_pseudo_boxes_are_read_as_other_annotations_are(rectangles):
    split, pgt = rectangles
    plain = PseudoSamples(pgt, split, (((64, 64),),), AugmentConfig())
    odd = [
        {**one, "image_id": str(one["image_id"]), "bbox": [str(v) for v in one["bbox"]]}
        for one in pgt["annotations"]
    ]
    crowd = {**pgt["annotations"][0], "iscrowd": "1"}
    read = PseudoSamples({"annotations": [*odd, crowd]}, split, (((64, 64),),), AugmentConfig())
    rngs = np.random.default_rng(0), np.random.default_rng(0)
    shown = Shown((64, 64), 64)
    for index in range(len(plain)):
        first, second = (
            one(index, shown, rng) for one, rng in zip((plain, read), rngs, strict=True)
        )
        np.testing.assert_equal(first, second)
    assert len(plain) == len(read)


@pytest.mark.parametrize(
    ("pgt", "message"),
    [
        ([], "has no list of annotations"),
        ({"annotations": {"1": []}}, "has no list of annotations"),
        ({"annotations": [5]}, r"annotations\[0\]: is no object"),
        ({"annotations": [{"id": 3, "image_id": 1}]}, r"annotations\[0\] \(id 3\): "),
        ({"annotations": [{"iscrowd": "perhaps"}]}, r"annotations\[0\]: iscrowd is neither"),
    ],
)
def test_a_file_that_holds_no_pseudo_boxes_is_bad_input(rectangles, pgt, message):
    with pytest.raises(BadInput, match=f"^pgt.json: {message}"), naming("pgt.json"):
        PseudoSamples(pgt, rectangles[0], (((64, 64),),), AugmentConfig())
