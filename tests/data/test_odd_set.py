"""A data set with one image of each odd kind, in every layout."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from odd_set import odd_tfds, write_odd_coco, write_odd_csv, write_odd_voc

from weaksam_jax.data.datasets import (
    dataset_fingerprint,
    open_tags,
    open_truth,
    split_names,
    truth_fingerprint,
    verify_images,
)
from weaksam_jax.data.formats import tfds
from weaksam_jax.data.images import load_image
from weaksam_jax.errors import BadInput


def plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


@pytest.mark.parametrize("write", [write_odd_voc, write_odd_coco, write_odd_csv])
def test_every_image_in_every_layout(tmp_path, write):
    sizes = {plain(name): size for name, size in write(tmp_path / "odd").items()}
    split = open_tags(tmp_path / "odd", split_names(tmp_path / "odd")["train"])
    found = {plain(one.file_name): (one.width, one.height) for one in split.records}
    assert found == sizes
    dog = split.classes.index("dog")
    assert all(one.tags == (dog,) for one in split.records)
    assert len({one.image_id for one in split.records}) == len(sizes)
    count = verify_images(split, progress=False)
    assert (count.images, count.negatives, count.tags) == (len(sizes), 0, len(sizes))
    truth = open_truth(tmp_path / "odd", split.split)
    if truth is not None:
        for one in truth.records:
            right, bottom = max(one.width // 2, 1), max(one.height // 2, 1)
            assert one.boxes.tolist() == [[0, 0, right, bottom]] and one.labels.tolist() == [dog]
    for of in (dataset_fingerprint, truth_fingerprint):
        assert of(tmp_path / "odd", split.split) == of(tmp_path / "odd", split.split)


def test_the_same_images_through_tfds(tmp_path):
    source, sizes = odd_tfds()
    tfds.export_voc(source, tmp_path / "VOC2007")
    split, truth = open_tags(tmp_path, "trainval"), open_truth(tmp_path, "trainval")
    assert {one.file_name: (one.width, one.height) for one in split.records} == {
        plain(name): size for name, size in sizes.items()
    }
    verify_images(split, progress=False)
    for one in truth.records:
        right, bottom = max(one.width // 2, 1), max(one.height // 2, 1)
        np.testing.assert_allclose(one.boxes, [[0, 0, right, bottom]], atol=0.01)
    assert load_image(split.records[0].path).dtype == np.uint8


def changed(**fields) -> dict:
    """A source of one example, some fields of which are others; those of objects as theirs."""
    source, _ = odd_tfds()
    example = source["train"][0]
    objects = {k: v for k, v in fields.items() if k in example["objects"]}
    rest = {k.replace("filename", "image/filename"): v for k, v in fields.items()}
    rest = {k: v for k, v in rest.items() if k not in objects}
    return {**source, "train": [{**example, **rest, "objects": {**example["objects"], **objects}}]}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"filename": b"../../a.jpg"}, "does not lie in the data set"),
        ({"filename": b"/tmp/a.jpg"}, "does not lie in the data set"),
        ({"filename": b"a\0.jpg"}, "does not lie in the data set"),
        ({"filename": b"a\n.jpg"}, r"U\+000A"),
        ({"filename": b"\xff.jpg"}, "no UTF-8"),
        ({"image": b""}, "cannot be read"),
        ({"bbox": [np.array([0, 0, np.nan, 1])]}, "box .* lies outside"),
        ({"bbox": [np.array([0, 0, 1.5, 1])]}, "box .* lies outside"),
        ({"bbox": [np.array([0, 0, np.inf, 1])]}, "box .* lies outside"),
        ({"label": [np.int64(20)]}, "label 20 is no class"),
        ({"label": [np.int64(-1)]}, "label -1 is no class"),
    ],
)
def test_examples_of_tfds_that_are_refused(tmp_path, fields, words):
    with pytest.raises(BadInput, match=rf"export train, example 1.*{words}"):
        tfds.export_voc(changed(**fields), tmp_path / "in" / "VOC2007")
    assert [*(tmp_path / "in").iterdir()] == [] and not Path(tmp_path / "a.jpg").exists()


def test_two_examples_of_one_name_do_not_overwrite_each_other(tmp_path):
    source = changed()
    for split in ("train", "validation"):
        twice = {**source, split: source["train"] * (2 if split == "train" else 1)}
        with pytest.raises(BadInput, match="cmyk is there twice"):
            tfds.export_voc(twice, tmp_path / "VOC2007")
    with pytest.raises(BadInput, match="has no split validation"):
        tfds.export_voc({"train": source["train"]}, tmp_path / "VOC2007")
