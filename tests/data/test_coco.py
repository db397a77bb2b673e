import json
from copy import deepcopy

import numpy as np
import pytest
from folders import coco_json, write_coco, write_image
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from weaksam_jax.data.datasets import open_tags, open_truth, split_names
from weaksam_jax.errors import BadInput


def test_tags_and_truth(tmp_path):
    root = write_coco(tmp_path / "coco")
    tags, truth = open_tags(root, "train"), open_truth(root, "train2017")
    assert tags.split == truth.split == "train2017"
    assert tags.classes == truth.classes == ("cat", "dog") and tags.category_ids == (4, 9)
    assert [(r.image_id, r.tags) for r in tags.records] == [(7, (1,)), (3, ())]  # crowd: no tag
    assert not any(r.uncertain for r in tags.records)
    first, second = truth.records
    assert first.boxes.tolist() == [[2, 1, 8, 5], [2, 5, 4, 10], [0, 0, 20, 10]]
    assert first.labels.tolist() == [1, 0, 1] and first.crowd.tolist() == [False, True, False]
    assert first.masks[2] is None and second.masks == () and second.boxes.shape == (0, 4)


def test_an_image_of_crowds_alone_is_uncertain(tmp_path):
    data = coco_json()
    data["annotations"] = data["annotations"][1:2]
    records = open_tags(write_coco(tmp_path / "coco", data), "train").records
    assert [(r.tags, r.uncertain) for r in records] == [((), True), ((), False)]


@pytest.mark.parametrize("compressed", [False, True])
def test_masks_agree_with_pycocotools(tmp_path, compressed):
    data = coco_json()
    if compressed:
        rle = coco_mask.frPyObjects(data["annotations"][1]["segmentation"], 10, 20)
        counts = rle["counts"].decode()
        data["annotations"][1]["segmentation"] = {"size": [10, 20], "counts": counts}
    data["annotations"].pop()  # pycocotools wants a segmentation
    root = write_coco(tmp_path / "coco", data)
    oracle = COCO(str(root / "annotations" / "instances_train2017.json"))
    record = open_truth(root, "train").records[0]
    for annotation, mask in zip(oracle.imgToAnns[7], record.masks, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(mask), oracle.annToMask(annotation))
        assert json.loads(json.dumps(mask)) == mask
    assert coco_mask.decode(record.masks[1])[5:10, 2:4].all()
    assert coco_mask.decode(record.masks[1]).sum() == 10


def test_tags_do_not_depend_on_boxes_or_masks(tmp_path):
    bare = coco_json()
    for annotation in bare["annotations"]:
        annotation.pop("bbox")
        annotation.pop("segmentation", None)
    before = open_tags(write_coco(tmp_path / "a"), "train")
    after = open_tags(write_coco(tmp_path / "b", bare), "train")
    assert [(r.image_id, r.file_name, r.tags) for r in before.records] == [
        (r.image_id, r.file_name, r.tags) for r in after.records
    ]
    assert (before.classes, before.dataset) == (after.classes, after.dataset)
    with pytest.raises(BadInput, match=r"annotations\[0\] \(id 1\): has no bbox"):
        open_truth(tmp_path / "b", "train")


def test_splits_are_found_by_file_name(tmp_path):
    root = write_coco(tmp_path / "coco")
    with pytest.raises(BadInput, match="no one training and one validation"):
        split_names(root)
    write_coco(root, name="instances_val2017")
    write_coco(root, name="captions_val2017")
    write_coco(root, name="image_info_test2017")
    assert split_names(root) == {"train": "train2017", "test": "val2017"}
    with pytest.raises(BadInput, match="no annotations for split test"):
        open_tags(root, "test")
    write_coco(root, name="instances_val2014")
    with pytest.raises(BadInput, match="val2014 and val2017"):
        open_tags(root, "val")


@pytest.mark.parametrize("folder", ["images/train2017", "images", "train2017", "."])
def test_images_in_sub_folders(tmp_path, folder):
    root = write_coco(tmp_path / "coco")
    for name in ("a.jpg", "b.jpg"):
        (root / "images" / name).unlink()
        write_image(root / folder / name)
    record = open_tags(root, "train").records[0]
    assert record.path == (root / folder / "a.jpg").resolve()


def test_rotated_photograph(tmp_path):
    data = coco_json()
    data["images"][0] |= {"width": 10, "height": 20}
    data["annotations"] = [{"id": 1, "image_id": 7, "category_id": 9, "bbox": [0, 0, 10, 20]}]
    root = write_coco(tmp_path / "coco", data)
    with pytest.raises(BadInput, match="said to be 10 x 20"):
        open_truth(root, "train")
    exif = Image.Exif()
    exif[274] = 8
    write_image(root / "images" / "a.jpg", 20, 10, exif=exif)
    record = open_truth(root, "train").records[0]
    assert (record.width, record.height) == (10, 20) and record.boxes[0, 3] == 20


def change(path: str, value):
    """Coco JSON with `value` put at a path like annotations/0/bbox."""

    def apply(data):
        *keys, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        for key in keys:
            data = data[key]
        data[last] = value

    return apply


BAD_TRUTH = {
    r"annotations\[0\] \(id 1\): bbox is inverted": change("annotations/0/bbox", [2, 1, -1, 4]),
    r"annotations\[0\] \(id 1\): bbox .* lies outside": change("annotations/0/bbox", [15, 1, 8, 4]),
    r"annotations\[0\] \(id 1\): segmentation has a polygon of 1 numbers": change(
        "annotations/0/segmentation", [["x"]]
    ),
    r"annotations\[1\] \(id 2\): segmentation has size \[5, 5\]": change(
        "annotations/1/segmentation", {"size": [5, 5], "counts": [25]}
    ),
}
BAD_BOTH = {
    r"annotations\[0\] \(id 1\): category_id 5 is not in categories": change(
        "annotations/0/category_id", 5
    ),
    r"annotations\[0\] \(id 1\): image_id 99 is not in images": change(
        "annotations/0/image_id", 99
    ),
    "id 3 is twice in images": change("images/0/id", 3),
    r"images\[1\] \(id 'x'\): id is no integer": change("images/1/id", "x"),
    r"images\[1\] \(id 3\): file_name 'b.jpg' is twice": change("images/0/file_name", "b.jpg"),
    "id 4 is twice in categories": change("categories/0/id", 4),
    "empty split": change("images", []),
    "lists no categories": change("categories", []),
    "images is not a list": change("images", {"a": 1}),
    r"annotations\[0\] \(id 1\): has no image_id": change("annotations/0", {"id": 1}),
    "none.jpg: image does not exist": change("images/0/file_name", "none.jpg"),
}


@pytest.mark.parametrize("word", [*BAD_TRUTH, *BAD_BOTH])
def test_bad_json(tmp_path, word):
    root = write_coco(tmp_path / "coco")
    data = deepcopy(coco_json())
    (BAD_TRUTH | BAD_BOTH)[word](data)
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(data))
    for read in (open_tags, open_truth):
        if read is open_tags and word in BAD_TRUTH:
            assert len(open_tags(root, "train").records) == 2  # tags need no boxes
            continue
        with pytest.raises(BadInput, match=word) as caught:
            read(root, "train")
        assert "\n" not in str(caught.value)


def test_broken_json(tmp_path):
    root = write_coco(tmp_path / "coco")
    (root / "annotations" / "instances_train2017.json").write_text('{"images": [')
    with pytest.raises(BadInput, match="is not JSON"):
        open_tags(root, "train")


@pytest.mark.parametrize("other", ["train", "instances_train"])
def test_two_files_of_one_split_are_refused(tmp_path, other):
    root = write_coco(tmp_path / "coco", name="train")
    assert open_tags(root, "train").split == "train"
    write_coco(root, name="instances_train")
    for read in (open_tags, open_truth):
        with pytest.raises(BadInput, match=r"instances_train\.json: and train\.json are both of"):
            read(root, "train")
    (root / "annotations" / f"{other}.json").rename(root / "annotations" / "captions_train.json")
    assert open_tags(root, "train").split == "train"


def test_two_spellings_of_one_photo_are_refused(tmp_path):
    data = coco_json()
    data["images"][1]["file_name"] = "a.JPG"
    root = write_coco(tmp_path / "coco", data)
    assert len(open_tags(root, "train").records) == 2  # two files on this disk
    (root / "images" / "a.JPG").unlink()
    for read in (open_tags, open_truth):
        with pytest.raises(BadInput, match=r"images\[1\] \(id 3\): file_name is another name of"):
            read(root, "train")
