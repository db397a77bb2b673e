import hashlib
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from folders import voc_object, write_image, write_voc
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from weaksam_jax.data.datasets import open_tags, open_truth, split_names
from weaksam_jax.data.formats.voc import VOC_CLASSES, find_voc
from weaksam_jax.data.formats.voc_lists import voc_image_id
from weaksam_jax.errors import BadInput


def two_splits(root):
    return write_voc(
        root,
        {
            "trainval": {
                "000001": [voc_object("dog", (1, 1, 20, 10)), voc_object("cat", difficult=1)],
                "000002": [voc_object("cat", (3, 4, 7, 9), 1), voc_object("cat", (2, 2, 3, 3))],
                "000005": [],
            },
            "test": {"2008_000008": [voc_object("person")]},
        },
    )


def test_tags_and_truth(tmp_path):
    root = two_splits(tmp_path / "VOC2007")
    tags, truth = open_tags(root, "trainval"), open_truth(root, "trainval")
    assert tags.dataset == "VOC2007" and tags.classes == VOC_CLASSES == truth.classes
    assert tags.category_ids == tuple(range(1, 21))
    dog, cat = VOC_CLASSES.index("dog"), VOC_CLASSES.index("cat")
    assert [record.tags for record in tags.records] == [(dog,), (cat,), ()]
    assert not any(record.uncertain for record in tags.records)
    assert [record.image_id for record in tags.records] == [1, 2, 5]
    assert tags.records[0].file_name == "000001.jpg"
    assert (tags.records[0].width, tags.records[0].height) == (20, 10)
    second = truth.records[1]
    assert second.boxes.dtype == np.float64 and second.labels.dtype == np.int32
    assert second.boxes.tolist() == [[2, 3, 7, 9], [1, 1, 3, 3]]
    assert second.labels.tolist() == [cat, cat] and second.difficult.tolist() == [True, False]
    assert not second.crowd.any() and second.masks is None
    assert truth.records[2].boxes.shape == (0, 4)
    assert open_tags(root, "test").records[0].image_id == 2008000008


@given(st.integers(0, 999999), st.integers(2005, 2012))
def test_image_id_is_the_number_without_underscore(number, year):
    assert voc_image_id(f"{number:06d}") == number
    assert voc_image_id(f"{year}_{number:06d}") == year * 10**6 + number


@given(st.text(max_size=8))
def test_image_id_of_other_names_is_none(name):
    digits = name.replace("_", "")
    if not re.fullmatch("[0-9]+", digits):
        assert voc_image_id(name) is None


@given(st.data())
def test_box_is_the_box_of_the_inclusive_pixels(tmp_path_factory, data):
    x = sorted(data.draw(st.lists(st.integers(1, 20), min_size=2, max_size=2)))
    y = sorted(data.draw(st.lists(st.integers(1, 10), min_size=2, max_size=2)))
    folder = tmp_path_factory.mktemp("voc")
    objects = [voc_object("cat", (x[0], y[0], x[1], y[1]))]
    root = write_voc(folder / "VOC2007", {"train": {"1": objects}})
    mask = np.zeros((10, 20), np.uint8)
    mask[y[0] - 1 : y[1], x[0] - 1 : x[1]] = 1
    left, top, width, height = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask)))
    expected = [left, top, left + width, top + height]
    assert open_truth(root, "train").records[0].boxes[0].tolist() == expected


def test_an_image_of_difficult_objects_alone_is_uncertain(tmp_path):
    objects = {"000001": [voc_object("dog", difficult=1)], "000002": []}
    write_voc(tmp_path / "VOC2007", {"trainval": objects, "test": {"000003": []}})
    records = open_tags(tmp_path / "VOC2007", "trainval").records
    assert [(r.tags, r.uncertain) for r in records] == [((), True), ((), False)]


def test_tags_do_not_depend_on_boxes_or_masks(tmp_path):
    with_boxes = two_splits(tmp_path / "a" / "VOC2007")
    without = two_splits(tmp_path / "b" / "VOC2007")
    for path in (without / "Annotations").iterdir():
        path.write_text(re.sub("<bndbox>.*?</bndbox>", "", path.read_text()))
    before, after = open_tags(with_boxes, "trainval"), open_tags(without, "trainval")
    assert before.classes == after.classes and before.dataset == after.dataset
    for one, two in zip(before.records, after.records, strict=True):
        assert (one.image_id, one.file_name, one.tags, one.width, one.height) == (
            two.image_id, two.file_name, two.tags, two.width, two.height,
        )  # fmt: skip
    assert open_truth(without, "trainval") is None
    shutil.copy(with_boxes / "Annotations" / "000001.xml", without / "Annotations" / "000001.xml")
    with pytest.raises(BadInput, match="incomplete"):
        open_truth(without, "trainval")


def test_masks_are_the_objects_pixels(tmp_path):
    objects = [voc_object("cat"), voc_object("dog"), voc_object("cat")]
    root = write_voc(tmp_path / "VOC2012", {"train": {"1": objects}})
    pixels = np.zeros((10, 20), np.uint8)
    pixels[1:4, 2:6], pixels[4, 2:6], pixels[6:, 10:] = 1, 255, 3
    (root / "SegmentationObject").mkdir()
    image = Image.fromarray(pixels, mode="P")
    image.putpalette(list(range(256)) * 3)
    image.save(root / "SegmentationObject" / "1.png")
    masks = open_truth(root, "train").records[0].masks
    np.testing.assert_array_equal(coco_mask.decode(masks[0]), pixels == 1)
    assert masks[1] is None
    np.testing.assert_array_equal(coco_mask.decode(masks[2]), pixels == 3)
    Image.fromarray(pixels[:5]).save(root / "SegmentationObject" / "1.png")
    with pytest.raises(BadInput, match="mask of shape"):
        open_truth(root, "train")


@pytest.mark.parametrize("mode", ["P", "L"])
@pytest.mark.parametrize("value", [3, 38, 254])
def test_masks_of_objects_that_are_not_annotated_are_refused(tmp_path, mode, value):
    objects = [voc_object("cat"), voc_object("dog")]
    root = write_voc(tmp_path / "VOC2012", {"train": {"1": objects}})
    pixels = np.zeros((10, 20), np.uint8)
    pixels[1:4, 2:6], pixels[4, 2:6], pixels[6:, 10:] = 2, 255, value
    (root / "SegmentationObject").mkdir()
    image = Image.fromarray(pixels)
    if mode == "P":
        image = Image.fromarray(pixels, mode="P")
        image.putpalette(list(range(256)) * 3)
    image.save(root / "SegmentationObject" / "1.png")
    with pytest.raises(BadInput, match=rf"1\.png: has pixels of value {value}, but 2 <object>"):
        open_truth(root, "train")
    assert open_tags(root, "train").records[0].tags  # masks are no matter of training


def test_annotations_are_upright(tmp_path):
    root = write_voc(tmp_path / "VOC2007", {"train": {"1": [voc_object("cat", (1, 1, 10, 20))]}})
    with pytest.raises(BadInput, match="outside"):
        open_truth(root, "train")
    exif = Image.Exif()
    exif[274] = 6
    write_image(root / "JPEGImages" / "1.jpg", 20, 10, exif=exif)
    record = open_truth(root, "train").records[0]
    assert (record.width, record.height) == (10, 20)
    assert record.boxes.tolist() == [[0, 0, 10, 20]]


def test_classes_of_ones_own(tmp_path):
    objects = {"train": {"1": [voc_object("owl")]}, "val": {"2": [voc_object("cat")]}}
    root = write_voc(tmp_path / "VOC2007", objects)
    assert open_tags(root, "train").classes == ("cat", "owl")  # the same in every split
    assert open_tags(root, "val").records[0].tags == (0,)
    (root / "classes.txt").write_text("owl\ncat\nbee\n")
    assert open_tags(root, "val").classes == ("owl", "cat", "bee")
    assert open_tags(root, "val").records[0].tags == (1,)


def test_classes_of_the_per_class_lists(tmp_path):
    root = write_voc(tmp_path / "VOC2007", {"train": {"1": [voc_object("owl")]}})
    for name, text in (("owl_train", "1  1\n"), ("bee_train", "1 -1\n"), ("my_train", "1\n")):
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    assert open_tags(root, "train").classes == ("bee", "owl")
    (root / "Annotations" / "1.xml").write_text(f"<annotation>{voc_object('cat')}</annotation>")
    with pytest.raises(BadInput, match="class 'cat' is not in the class list"):
        open_tags(root, "train")


def test_names_that_are_no_numbers_get_stable_ids(tmp_path):
    splits = {"train": {"b": [voc_object("cat")], "d7": []}, "val": {"a": [], "12": []}}
    root = write_voc(tmp_path / "VOC2007", splits)

    def ids(split):
        return [record.image_id for record in open_tags(root, split).records]

    before = ids("train") + ids("val")
    assert before[3] == 12 and len(set(before)) == 4
    # The id is written in stores and results: it must be the same in every version.
    assert before[0] == 1 << 52 | int(hashlib.sha256(b"b").hexdigest()[:13], 16)
    (root / "ImageSets" / "Main" / "other.txt").write_text("0a\nzz\n")
    write_image(root / "JPEGImages" / "0.jpg")
    (root / "Annotations" / "0.xml").write_text("<annotation></annotation>")
    (root / "ImageSets" / "Main" / "train.txt").write_text("0\nb\nd7\n")
    assert ids("train") + ids("val") == [0, *before]


def test_finding_the_folder_and_the_splits(tmp_path):
    devkit = tmp_path / "data" / "VOCdevkit"
    root = two_splits(devkit / "VOC2007").resolve()
    assert find_voc(root) == find_voc(devkit) == find_voc(tmp_path / "data") == root
    assert find_voc(tmp_path) is None
    assert split_names(devkit) == {"train": "trainval", "test": "test"}
    (root / "Annotations" / "2008_000008.xml").unlink()  # as in VOC2012
    write_image(root / "JPEGImages" / "2008_000008.jpg")
    for split in ("train", "val"):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("000001\n")
    assert split_names(devkit) == {"train": "train", "test": "val"}
    two_splits(devkit / "VOC2012")
    with pytest.raises(BadInput, match="VOC2007 and VOC2012"):
        find_voc(devkit)


BAD = {
    "inverted": [voc_object("cat", (9, 1, 5, 5))],
    "outside": [voc_object("cat", (1, 1, 21, 5))],
    "outside the": [voc_object("cat", (0, 1, 5, 5))],
    "incomplete": [voc_object("cat", ("x", 1, 5, 5))],
    "without <name>": [voc_object("")],
    "is no XML": ["<object>"],
    "is not finite": [voc_object("cat", ("nan", 1, 5, 5))],
}


def test_difficult_objects_give_tags_when_asked_for(tmp_path):
    objects = [voc_object("cat"), voc_object("dog", difficult=1)]
    root = write_voc(tmp_path, {"trainval": {"000001": objects}, "test": {"000002": []}})
    for asked, names in ((False, {"cat"}), (True, {"cat", "dog"})):
        split = open_tags(root, "trainval", difficult=asked)
        assert {split.classes[one] for one in split.records[0].tags} == names


def test_a_test_split_of_unpublished_annotations_has_no_tags(tmp_path):
    """As VOC2012's test: a list and photographs, not one annotation."""
    splits = {"trainval": {"000001": [voc_object("cat")]}, "test": {"000002": [], "000003": []}}
    root = write_voc(tmp_path, splits)
    for name in ("000002", "000003"):
        (root / "Annotations" / f"{name}.xml").unlink()
    split = open_tags(root, "test")
    assert [one.tags for one in split.records] == [(), ()] and split.records[0].width == 20
    assert open_truth(root, "test") is None
    (root / "Annotations" / "000001.xml").unlink()
    with pytest.raises(BadInput, match=r"names no object at all; add annotations, or .*classes"):
        open_tags(root, "test")
    (root / "classes.txt").write_text("cat\n")
    assert open_tags(root, "test").classes == ("cat",)
    with pytest.raises(BadInput, match=r"000001\.xml: annotation does not exist"):
        open_tags(root, "trainval")
    (root / "Annotations" / "000003.xml").write_text("<annotation></annotation>")
    with pytest.raises(BadInput, match=r"000002\.xml: annotation does not exist"):
        open_tags(root, "test")


@pytest.mark.parametrize("word", BAD)
def test_bad_annotations(tmp_path, word):
    root = write_voc(tmp_path / "VOC2007", {"train": {"000001": BAD[word]}})
    with pytest.raises(BadInput, match=word) as caught:
        open_truth(root, "train")
    assert caught.value.path == str(root.resolve() / "Annotations" / "000001.xml")
    assert "\n" not in str(caught.value)


def test_bad_lists_and_missing_files(tmp_path):
    root = two_splits(tmp_path / "VOC2007")
    list_file = root / "ImageSets" / "Main" / "trainval.txt"
    write_image(root / "JPEGImages" / "000009.jpg")
    for text, word in (
        ("000001\n000001\n", "listed twice"),
        ("000001\n00_0001\n", "same image id 1"),
        (" \n", "is empty"),
        ("000001\n000009\n", "000009.xml: annotation does not exist"),
    ):
        list_file.write_text(text)
        for read in (open_tags, open_truth):
            with pytest.raises(BadInput, match=word):
                read(root, "trainval")
    with pytest.raises(BadInput, match="splits here: test, trainval"):
        open_tags(root, "train")
    list_file.write_text("000001\n")
    (root / "classes.txt").write_text("cat\n")
    for read in (open_tags, open_truth):
        with pytest.raises(BadInput, match=r"000001\.xml: class 'dog' is not in the class list"):
            read(root, "trainval")
    (root / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(BadInput, match="class cat twice"):
        open_tags(root, "trainval")
    (root / "classes.txt").unlink()
    (root / "JPEGImages" / "000001.jpg").unlink()
    for read in (open_tags, open_truth):
        with pytest.raises(BadInput, match=r"000001\.jpg: image does not exist"):
            read(root, "trainval")


def test_real_voc07_photographs(voc07_small):
    assert split_names(voc07_small.parent) == {"train": "trainval", "test": "test"}
    truth, tags = open_truth(voc07_small, "test"), open_tags(voc07_small, "test")
    assert len(truth.records) == len(tags.records) == 500
    for record, tagged in zip(truth.records[::25], tags.records[::25], strict=True):
        tree = ElementTree.parse(voc07_small / "Annotations" / f"{record.path.stem}.xml")
        objects = tree.findall("object")
        corners = [
            [int(o.find("bndbox").find(c).text) for c in ("xmin", "ymin", "xmax", "ymax")]
            for o in objects
        ]
        np.testing.assert_array_equal(record.boxes, np.array(corners) - [1, 1, 0, 0])
        easy = {o.find("name").text for o in objects if o.find("difficult").text == "0"}
        assert {tags.classes[tag] for tag in tagged.tags} == easy
        assert record.image_id == tagged.image_id == int(record.path.stem)
    count = sum(len(open_truth(voc07_small, s).records) for s in ("train", "val", "test"))
    objects = [open_truth(voc07_small, split) for split in ("trainval", "test")]
    total = sum(len(record.labels) for split in objects for record in split.records)
    hard = sum(int(record.difficult.sum()) for split in objects for record in split.records)
    assert (count, total, hard) == (2000, 6017, 1219)  # ../shared/data/README.md


def test_real_voc12_masks(voc12_masks_small):
    names = split_names(voc12_masks_small)
    splits = [open_truth(voc12_masks_small, split) for split in names.values()]
    records = [record for split in splits for record in split.records]
    assert sum(len(record.labels) for record in records) == 559
    for record in records[::10]:
        assert record.masks is not None
        for box, mask in zip(record.boxes, record.masks, strict=True):
            x, y, width, height = coco_mask.toBbox(mask)
            found = np.array([x, y, x + width, y + height])
            inter = np.prod(
                np.clip(np.minimum(found, box)[2:] - np.maximum(found, box)[:2], 0, None)
            )
            union = width * height + np.prod(box[2:] - box[:2]) - inter
            assert inter / union > 0.5  # masks are a few pixels inside their boxes
