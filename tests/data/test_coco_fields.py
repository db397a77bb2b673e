"""Fields of COCO annotation files as people have them: read where clear, else named."""

import json

import numpy as np
import pytest
from folders import coco_json, write_coco, write_image

from weaksam_jax.data.datasets import open_tags, open_truth, split_names
from weaksam_jax.errors import BadInput

FILE = "instances_train2017.json"


def dataset(tmp_path, change=lambda data: None, raw=None):
    root, data = write_coco(tmp_path / "coco"), coco_json()
    change(data)
    text = json.dumps(data).encode() if raw is None else raw
    (root / "annotations" / FILE).write_bytes(text)
    return root


def put(key, index, **values):
    return lambda data: data[key][index].update(values)


def drop(key, index, field):
    return lambda data: data[key][index].pop(field)


# Every fault is refused by both readers, with the list, the place and the field.
BAD = [
    (put("images", 0, id={"$oid": "5f"}), r"images\[0\] \(id .*oid.*\): id is no integer"),
    (put("images", 1, id=None), r"images\[1\].*: id is no integer \(null\)"),
    (put("images", 1, id=-3), r"images\[1\].*: id is negative"),
    (put("images", 1, id=2**63), r"images\[1\].*: id is beyond 64 bits"),
    (put("images", 1, id=10**400), r"images\[1\].*: id is beyond 64 bits"),
    (put("images", 1, id=True), r"images\[1\].*: id is no integer \(true\)"),
    (put("images", 1, id="7"), r"images\[1\].*: id 7 is twice in images; images\[0\]"),
    (drop("images", 1, "id"), r"images\[1\]: has no id"),
    (put("images", 0, file_name=None), r"images\[0\] \(id 7\): file_name is no text \(null\)"),
    (put("images", 0, file_name=["a.jpg"]), r"images\[0\] \(id 7\): file_name is no text"),
    (put("images", 0, file_name=""), r"images\[0\] \(id 7\): file_name is empty"),
    (put("images", 0, file_name="./b.jpg"), r"images\[1\].*: file_name 'b.jpg' is twice"),
    (put("images", 0, file_name="../a.jpg"), r"images\[0\].file_name .* not lie in the data set"),
    (put("images", 0, file_name="x/../../a.jpg"), r"images\[0\].file_name .* not lie in the data"),
    (put("images", 0, file_name="..\\a.jpg"), r"images\[0\].file_name .* not lie in the data set"),
    (put("images", 0, file_name="/etc/a.jpg"), r"images\[0\].file_name .* not lie in the data set"),
    (put("images", 0, file_name="C:\\a.jpg"), r"images\[0\].file_name .* not lie in the data set"),
    (put("images", 0, file_name="C:/a.jpg"), r"images\[0\].file_name .* not lie in the data set"),
    (put("images", 0, file_name="a\0.jpg"), r"images\[0\].file_name .* not lie in the data set"),
    (put("images", 0, file_name="sub\\a.jpg"), "image does not exist"),
    (put("images", 0, width=0), r"images\[0\] \(id 7\): width and height are said to be 0 x 10"),
    (put("images", 0, width="wide"), r"images\[0\] \(id 7\): width is no integer \('wide'\)"),
    (put("images", 0, height=[10]), r"images\[0\] \(id 7\): height is no integer"),
    (put("images", 0, height=20.5), r"images\[0\] \(id 7\): height is no integer"),
    (put("categories", 0, id=None), r"categories\[0\].*: id is no integer \(null\)"),
    (put("categories", 0, id=4.0), r"categories\[1\].*: id 4 is twice in categories"),
    (put("categories", 0, name=None), r"categories\[0\] \(id 9\): name is no text \(null\)"),
    (put("categories", 0, name="cat"), r"categories\[1\] \(id 4\): name 'cat' is twice"),
    (put("categories", 0, name=" cat "), r"categories\[1\] \(id 4\): name 'cat' is twice"),
    (put("categories", 0, name="a\x1b[31m"), r"categories\[0\] .*U\+001B"),
    (put("categories", 0, name=" "), r"categories\[0\] \(id 9\): name is empty"),
    (put("annotations", 0, category_id=[1]), r"annotations\[0\] \(id 1\): category_id is no int"),
    (put("annotations", 0, category_id=None), r"annotations\[0\] \(id 1\): category_id is no int"),
    (put("annotations", 0, category_id="x"), r"annotations\[0\] \(id 1\): category_id is no int"),
    (put("annotations", 0, category_id=5), r"annotations\[0\] \(id 1\): category_id 5 is not in"),
    (put("annotations", 0, image_id=5), r"annotations\[0\] \(id 1\): image_id 5 is not in images"),
    (put("annotations", 0, image_id=True), r"annotations\[0\] \(id 1\): image_id is no integer"),
    (put("annotations", 1, iscrowd=2), r"annotations\[1\] \(id 2\): iscrowd is neither 0 nor 1"),
    (put("annotations", 1, iscrowd="crowd"), r"annotations\[1\] \(id 2\): iscrowd is neither"),
    (put("annotations", 1, iscrowd=[0]), r"annotations\[1\] \(id 2\): iscrowd is neither 0 nor 1"),
    (lambda data: data["annotations"].append(None), r"annotations\[3\]: is no object \(null\)"),
    (lambda data: data["images"].append([]), r"images\[2\]: is no object"),
    (lambda data: data.pop("annotations"), "annotations is not a list of objects"),
    (lambda data: data.update(categories={"1": "cat"}), "categories is not a list of objects"),
]
# These only truth has.
BAD_TRUTH = [
    (put("annotations", 0, bbox=[1, 1, 10**400, 4]), r"annotations\[0\] \(id 1\): bbox is no \["),
    (put("annotations", 0, bbox=[1, 1, 4]), r"annotations\[0\] \(id 1\): bbox is no \["),
    (put("annotations", 0, bbox="1,1,4,4"), r"annotations\[0\] \(id 1\): bbox is no \["),
    (put("annotations", 0, bbox=[1, 1, None, 4]), r"annotations\[0\] \(id 1\): bbox is no \["),
    (put("annotations", 2, bbox=None), r"annotations\[2\] \(id 3\): bbox is no \["),
    (drop("annotations", 2, "bbox"), r"annotations\[2\] \(id 3\): has no bbox"),
    (put("annotations", 0, bbox=[5, 5, -3, 2]), r"annotations\[0\] \(id 1\): bbox is inverted"),
    (put("annotations", 0, bbox=[5, 5, 30, 2]), r"annotations\[0\] \(id 1\): bbox .* lies outside"),
    (put("annotations", 0, segmentation={"size": [10, 20], "counts": None}),
     r"annotations\[0\] \(id 1\): segmentation has counts that are neither"),
    (put("annotations", 0, segmentation=[[1, 2, 2e8, 4, 5, 6]]),
     r"annotations\[0\] \(id 1\): segmentation has a corner more than"),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(BAD) + len(BAD_TRUTH)))
def test_what_is_not_clear_names_file_entry_and_field(tmp_path, index):
    change, message = [*BAD, *BAD_TRUTH][index]
    root = dataset(tmp_path, change)
    for read in (open_truth, open_tags):
        if read is open_tags and index >= len(BAD):
            assert len(read(root, "train").records) == 2  # tags need no boxes
            continue
        with pytest.raises(BadInput, match=message) as caught:
            read(root, "train")
        assert "\n" not in str(caught.value) and "delete" not in caught.value.hint


RAW = {
    b"": "is empty",
    b"null": "is no object",
    b"[]": "is no object",
    b"5": "is no object",
    b'"text"': "is no object",
    b"{}": "images is not a list",
    b"[" * 100_000: "nested too deeply",
    b'{"images": [': "is not JSON",
    json.dumps(coco_json()).replace("6, 4]", "NaN, 4]").encode(): r"annotations\[0\].bbox\[2\]",
    json.dumps(coco_json()).replace("6, 4]", "1e400, 4]").encode(): r"annotations\[0\] \(id 1\)",
    json.dumps(coco_json()).replace("6, 4]", "9" * 5000 + ", 4]").encode(): "too many digits",
}


@pytest.mark.parametrize("raw", RAW, ids=RAW.values())
def test_files_that_are_no_coco_file(tmp_path, raw):
    root = dataset(tmp_path, raw=raw)
    with pytest.raises(BadInput, match=f"{FILE}: .*{RAW[raw]}"):
        open_truth(root, "train")


def plain(split):
    """A split as plain values; boxes and masks where it has them."""
    rows = []
    for one in split.records:
        row = {name: getattr(one, name) for name in one.__dataclass_fields__}
        rows.append({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()})
    return [split.classes, split.category_ids, rows]


CLEAR = {
    "ids as text": lambda d: [one.update({key: str(one[key])}) for name in d for one in d[name]
                              for key in ("id", "image_id", "category_id") if key in one],
    "ids as floats": lambda d: [one.update({key: float(one[key])}) for name in d for one in d[name]
                                for key in ("id", "image_id", "category_id") if key in one],
    "flags as text": lambda d: [one.update(iscrowd=str(one["iscrowd"])) for one in
                                d["annotations"]],
    "flags as words": lambda d: [one.update(iscrowd=str(bool(one["iscrowd"])).lower()) for one in
                                 d["annotations"]],
    "flags as booleans": lambda d: [one.update(iscrowd=bool(one["iscrowd"])) for one in
                                    d["annotations"]],
    "no flags": lambda d: [one.pop("iscrowd") for one in d["annotations"] if not one["iscrowd"]],
    "null flags": lambda d: [one.update(iscrowd=None) for one in d["annotations"]
                             if not one["iscrowd"]],
    "boxes as text": lambda d: [one.update(bbox=[str(v) for v in one["bbox"]]) for one in
                                d["annotations"]],
    "sizes as text": lambda d: [one.update(width="20", height=10.0) for one in d["images"]],
    "sizes null": lambda d: [one.update(width=None, height=None) for one in d["images"]],
    "no sizes": lambda d: [(one.pop("width"), one.pop("height")) for one in d["images"]],
    "names with blanks": lambda d: [one.update(name=f" {one['name']}\n") for one in
                                    d["categories"]],
    "empty masks": lambda d: d["annotations"][2].update(segmentation=[]),
    "a null mask": lambda d: d["annotations"][2].update(segmentation=None),
    "foreign keys": lambda d: [one.update(caption="x", keypoints=[1], attributes={"a": None})
                               for one in d["annotations"]],
    "runs as text": lambda d: d["annotations"][1].update(
        segmentation={"size": ["10", "20"], "counts": ["25", "5", 5.0, "5", "160"]}),
    "no box beside a mask": lambda d: d["annotations"][1].pop("bbox"),
    "same stem, dot slash": lambda d: d["images"][0].update(file_name="./a.jpg"),
}  # fmt: skip


@pytest.mark.parametrize("name", CLEAR)
def test_what_is_clear_is_the_same_split(tmp_path, name):
    want = [plain(read(write_coco(tmp_path / "coco"), "train")) for read in (open_tags, open_truth)]
    root = dataset(tmp_path, CLEAR[name])
    assert [plain(read(root, "train")) for read in (open_tags, open_truth)] == want


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_byte_order_marks(tmp_path, encoding):
    want = plain(open_truth(dataset(tmp_path), "train"))
    raw = json.dumps(coco_json()).encode(encoding)
    assert plain(open_truth(dataset(tmp_path, raw=raw), "train")) == want


@pytest.mark.parametrize("name", ["a.bmp", "a.Jpg", "a.TIF", "sub folder/ü 🐈.png", "x/1.jpg"])
def test_names_that_are_fine(tmp_path, name):
    root = dataset(tmp_path, put("images", 0, file_name=name))
    if name.endswith("Jpg"):
        (root / "images" / "a.jpg").rename(root / "images" / name)
    else:
        write_image(root / "images" / name)
    write_image(root / "images" / "y" / "1.jpg")
    record = open_tags(root, "train").records[0]
    assert (record.file_name, record.path) == (name, root.resolve() / "images" / name)


def test_links_of_the_users_lead_where_they_lead(tmp_path):
    root = dataset(tmp_path, put("images", 0, file_name="elsewhere/a.jpg"))
    write_image(tmp_path / "disk" / "a.jpg")
    (root / "images" / "elsewhere").symlink_to(tmp_path / "disk")
    assert open_truth(root, "train").records[0].file_name == "elsewhere/a.jpg"


def test_hidden_files_beside_annotations_are_none(tmp_path):
    root = dataset(tmp_path)
    write_coco(root, name="instances_val2017")
    (root / "annotations" / "._instances_val2017.json").write_bytes(b"\0\5\x16\7")
    assert split_names(root) == {"train": "train2017", "test": "val2017"}
