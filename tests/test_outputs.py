"""What a command writes is never what it reads."""

import os

import pytest
from folders import write_csv, write_voc

from weaksam_jax.errors import BadInput
from weaksam_jax.locks import LOCK
from weaksam_jax.outputs import check_apart, check_files, check_folder


@pytest.fixture
def data(tmp_path):
    root = write_voc(tmp_path / "kit" / "VOC2007", {"trainval": {"a": []}, "test": {"b": []}})
    (root / "thumbs").mkdir()
    (root / "thumbs" / "mine.PNG").touch()
    return root


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        (".", "is the data set"),
        ("..", "contains the data set"),
        ("../..", "contains the data set"),
        ("../../kit/VOC2007/JPEGImages/..", "is the data set"),
        ("JPEGImages", "JPEGImages belongs to"),
        ("JPEGImages/deep/run", "JPEGImages belongs to"),
        ("ImageSets/Main", "ImageSets belongs to"),
        ("Annotations/run", "Annotations belongs to"),
        ("thumbs", "thumbs belongs to"),
        ("thumbs/run", "thumbs belongs to"),
        ("../link", "is the data set"),
        ("../link/Annotations", "Annotations belongs to"),
    ],
)
def test_folders_that_would_be_mixed_with_the_data(data, monkeypatch, out, problem):
    (data.parent / "link").symlink_to(data)
    monkeypatch.chdir(data)
    for given in (data, os.path.relpath(data), data.parent / "link"):
        with pytest.raises(BadInput, match=f"--out: .*{problem}"):
            check_folder("--out", data / out, given)


@pytest.mark.parametrize("out", ["runs", "runs/mine", "../runs", "../../runs", "new", "ours"])
def test_folders_beside_the_data(data, out):
    (data / "ours").mkdir()
    (data / "ours" / "beach.png").touch()
    (data / "ours" / LOCK).touch()  # predictions of an earlier call
    check_folder("--out", data / out, data)
    check_folder("--out", data / out, "tfds:voc/2007")


def test_the_kit_is_the_data_set_too(data):
    with pytest.raises(BadInput, match="is the data set"):
        check_folder("--out", data.parent, data.parent)
    check_folder("--out", data.parent / "runs", data.parent)


def test_files_are_no_inputs(tmp_path, data):
    found = tmp_path / "found.json"
    found.write_text("[]")
    (tmp_path / "link.json").symlink_to(found)
    os.link(found, tmp_path / "hard.json")
    given = {"--detections": found, "--data": data}
    for name in ("found.json", "link.json", "hard.json"):
        with pytest.raises(BadInput, match=f"--json: .*{name} is the file of --detections"):
            check_files("--json", tmp_path / name, given)
    for name in ("ImageSets/Main/test.txt", "Annotations/a.xml", "Annotations/new.json"):
        with pytest.raises(BadInput, match="lies in the data set"):
            check_files("--json", data / name, given)
    check_files("--json", tmp_path / "new.json", given)
    check_files("--json", data / "pgt.json", {"--data": data, "--weights": None})


def test_the_list_of_tags_is_an_input(tmp_path):
    data = write_csv(tmp_path / "photos", ["a.jpg,dog,train", "b.jpg,cat,test"])
    with pytest.raises(BadInput, match="lies in the data set"):
        check_files("--out", data / "tags.csv", {"--data": data})


def test_inputs_that_may_be_made_anew(tmp_path):
    store = tmp_path / "run" / "proposals"
    (store / "deep").mkdir(parents=True)
    for given in (store, store / "deep"):
        with pytest.raises(BadInput, match=r"--proposals: .* lies in --out"):
            check_apart("--out", store, {"--proposals": given})
    check_apart("--out", store, {"--proposals": tmp_path / "other", "--sam": None})
    check_apart("--out", store, {"--sam": tmp_path / "run", "--clues": "weaktr"})
