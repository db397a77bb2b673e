import re

import pytest
from folders import voc_object, write_coco, write_csv, write_image, write_voc
from PIL import Image

from weaksam_jax.data.datasets import (
    FORMATS,
    Format,
    SplitCount,
    dataset_fingerprint,
    is_training,
    open_tags,
    open_truth,
    split_names,
    verify_images,
)
from weaksam_jax.errors import BadInput


@pytest.fixture
def root(tmp_path):
    images = {"000001": [voc_object("dog")], "000002": [], "000003": [voc_object("cat")]}
    return write_voc(tmp_path / "VOC2007", {"train": images})


def test_what_is_no_data_set(tmp_path):
    write_image(tmp_path / "images" / "a.jpg")
    for path in (tmp_path, tmp_path / "none", tmp_path / "images" / "a.jpg"):
        for read in (
            lambda p: open_tags(p, "train"),
            lambda p: open_truth(p, "train"),
            split_names,
        ):
            with pytest.raises(BadInput, match=r"is no data set|is no folder"):
                read(path)


def test_formats_are_told_apart(tmp_path, root):
    assert open_tags(root, "train").dataset == "VOC2007"
    assert open_tags(write_coco(tmp_path / "coco"), "train").dataset == "COCO"
    assert open_tags(write_csv(tmp_path / "csv", ["a.jpg,cat,train"]), "train").dataset == "tags"


def test_difficult_objects_give_tags_where_the_format_knows_such(tmp_path):
    root = write_voc(tmp_path / "voc", {"train": {"1": [voc_object("dog", difficult=1)]}})
    for difficult, tags in ((False, ()), (True, (11,))):
        (record,) = open_tags(root, "train", difficult).records
        assert (record.tags, record.uncertain) == (tags, not difficult)
    coco = write_coco(tmp_path / "coco")
    assert open_tags(coco, "train", difficult=True) == open_tags(coco, "train")


def test_a_new_format_is_a_row(tmp_path, root, monkeypatch):
    """Found after those that are there, by its own file; it reads a VOC folder beside that."""
    (tmp_path / "my").mkdir()
    path = tmp_path / "my" / "pointer.txt"
    path.write_text(str(root))

    def find(given):
        return root if (given / "pointer.txt").exists() else None

    with pytest.raises(BadInput, match="is no data set"):
        open_tags(path.parent, "train")
    voc = FORMATS["voc"]
    row = Format(find, voc.tags, lambda root, split: None, lambda root: {"train": "train"})
    monkeypatch.setitem(FORMATS, "pointer", row)
    assert open_tags(path.parent, "train") == open_tags(root, "train")
    assert open_truth(path.parent, "train") is None and open_truth(root, "train") is not None
    assert split_names(path.parent) == {"train": "train"}


def test_training_splits_of_every_format(tmp_path):
    roots = [write_voc(tmp_path / "a", {"trainval": {"1": []}, "test": {"2": []}})]
    roots += [write_voc(tmp_path / "b", {"train": {"1": []}, "val": {"2": []}})]
    roots += [write_csv(tmp_path / "c", ["a.jpg,cat,train", "b.jpg,cat,test"])]
    write_coco(tmp_path / "d", name="instances_train2014")
    roots += [write_coco(tmp_path / "d", name="instances_val2014")]
    for root in roots:
        names = split_names(root)
        assert is_training(names["train"]) and not is_training(names["test"])


def test_verify_counts_negatives(root):
    assert verify_images(open_tags(root, "train"), progress=False) == SplitCount(3, 1, 2)


def test_verify_finds_truncated_and_changed_images(root):
    path = root / "JPEGImages" / "000002.jpg"
    split = open_tags(root, "train")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(BadInput, match=r"000002\.jpg: image cannot be read"):
        verify_images(split, progress=False)
    write_image(path, 30, 10)
    with pytest.raises(BadInput, match="is 30 x 10, not 20 x 10"):
        verify_images(split, progress=False)


def test_fingerprint_is_of_what_training_reads(root):
    first = dataset_fingerprint(root, "train")
    annotation = root / "Annotations" / "000001.xml"
    text = annotation.read_text()
    annotation.write_text(re.sub("<bndbox>.*?</bndbox>", "", text))
    assert dataset_fingerprint(root, "train") == first  # boxes have no part in it
    annotation.write_text(text.replace("dog", "cow"))
    assert dataset_fingerprint(root, "train") != first
    annotation.write_text(text)
    assert dataset_fingerprint(root, "train") == first
    list_file = root / "ImageSets" / "Main" / "train.txt"
    list_file.write_text("000001\n000003\n")
    assert dataset_fingerprint(root, "train") != first
    list_file.write_text("000001\n000002\n000003\n")
    Image.new("RGB", (20, 10)).save(root / "JPEGImages" / "000002.jpg")
    assert dataset_fingerprint(root, "train") != first
