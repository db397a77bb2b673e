"""Names of images and classes in files for the VOC server."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from folders import write_coco

from experiments.detect import Detect, check_names
from experiments.evaluate import main
from weaksam_jax.cli import entry_point
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.evaluate import comp4_names, write_comp4
from weaksam_jax.locks import LOCK


def split_of(files, classes=("cat",), name="test"):
    records = tuple(TagRecord(i, one, Path(one), 40, 30, ()) for i, one in enumerate(files))
    ids = tuple(range(1, len(classes) + 1))
    return TagSplit("made up", name, classes, category_ids=ids, records=records)


def result(image, category=1):
    return {"image_id": image, "category_id": category, "bbox": [10, 10, 30, 30], "score": 0.5}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (("000005.jpg", "2008_000008.jpg"), ["000005", "2008_000008"]),
        (("x/1.jpg", "2.png"), ["1", "2"]),
        (("x/1.jpg", "y/1.jpg", "z/2.jpg"), ["x/1", "y/1", "2"]),
        (("1.jpg", "y/1.jpg"), ["1", "y/1"]),
        (("two.jpg", "two.png", "x/two.png"), ["two.jpg", "two.png", "x/two"]),
        (("a.b.jpg", "a.jpg"), ["a.b", "a"]),
    ],
)
def test_every_image_has_a_name_of_its_own(files, names):
    assert comp4_names(split_of(files)) == names


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        (("my photo.jpg",), "'my photo' has a blank"),
        (("a\tb.jpg",), r"'a\tb' has a blank"),
        (("two.jpg", "two.png", "two.png.bmp"), "'two.png' is the name of two"),
    ],
)
def test_names_that_the_files_cannot_hold_are_refused(tmp_path, files, fault):
    with pytest.raises(BadInput, match=re.escape(f"made up/test: image name {fault}")):
        write_comp4([result(0)], split_of(files), tmp_path / "out")
    assert not (tmp_path / "out").exists()


HOSTILE = ("car/truck", "car%2Ftruck", "x/../../../escaped", "..", ".", "/etc/passwd", "a\\b",
           "a\0b", "a\nb", "\x1b[31m", "CON:", "猫", "two words", "x" * 300, "x" * 9)  # fmt: skip


@pytest.mark.parametrize("name", ["test", "../../up", "a/b"])
def test_class_names_stay_in_the_folder_and_apart(tmp_path, name):
    split = split_of(("a.jpg",), HOSTILE, name)
    found = [result(0, number) for number in range(1, len(HOSTILE) + 1)]
    folder = tmp_path / "deep" / "Main"
    paths = write_comp4(found, split, folder)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] != []
    assert sorted(paths) == sorted(folder.iterdir()) and len(set(paths)) == len(HOSTILE)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(paths)
    for label, path in zip(HOSTILE, paths, strict=True):
        assert path.read_text() == "a 0.5 11 11 40 40\n"
        if len(label) < 100:
            assert unquote(path.name) == f"comp4_det_{name}_{label}.txt"


@pytest.mark.parametrize("label", ["car/truck", "x/../../../escaped"])
def test_equal_stems_and_slashes_end_to_end(tmp_path, label):
    images = [{"id": i, "file_name": f"{folder}/1.jpg"} for i, folder in ((1, "x"), (2, "y"))]
    rows = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 5, 5]} for i in (1, 2)]
    data = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": label}]}
    root = write_coco(tmp_path / "data", data, "instances_train")
    found = [{**result(i), "bbox": [1, 1, 5, 5], "score": 1 - i / 10} for i in (1, 2)]
    (tmp_path / "found.json").write_text(json.dumps(found))
    out = tmp_path / "comp4" / "deep" / "Main"
    flags = ["--data", str(root), "--split", "train", "--detections", str(tmp_path / "found.json")]
    assert entry_point(main, [*flags, "--metric", "voc07", "--voc-files", str(out)]) == 0
    files = [one for one in (tmp_path / "comp4").rglob("*") if one.is_file()]
    (path,) = [one for one in files if one != out / LOCK]
    assert path.parent == out and path.read_text() == "x/1 0.9 2 2 6 6\ny/1 0.8 2 2 6 6\n"


def test_detect_refuses_names_before_it_detects(tmp_path):
    options = Detect(tmp_path, tmp_path, tmp_path, voc_files=tmp_path / "out")
    with pytest.raises(BadInput, match="has a blank"):
        check_names(options, split_of(("my photo.jpg",)))
    assert check_names(options, split_of(("photo.jpg",))) is None
    without = Detect(tmp_path, tmp_path, tmp_path)
    assert check_names(without, split_of(("my photo.jpg",))) is None
