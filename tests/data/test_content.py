"""What a data set is, by the content of its files."""

import os
import re
import shutil
import time

import pytest
from folders import voc_object, write_coco, write_csv, write_image, write_voc
from PIL import Image

from weaksam_jax.data import content
from weaksam_jax.data.content import content_hashes
from weaksam_jax.data.datasets import dataset_fingerprint, truth_fingerprint
from weaksam_jax.errors import BadFile


def old(path, seconds: float = 100.0):
    """The file as one that was written long ago (but for the disk's own note)."""
    past = time.time_ns() - int(seconds * 10**9)
    os.utime(path, ns=(past, past))
    return path


@pytest.fixture
def later(monkeypatch):
    """Files that were written just now are not too young to be remembered."""
    monkeypatch.setattr(content, "_SETTLED_NS", 0)


@pytest.fixture
def read(monkeypatch):
    """The names of the files that were read."""
    seen, plain = [], content._hash

    def hashed(path):
        seen.append(path.name)
        return plain(path)

    monkeypatch.setattr(content, "_hash", hashed)
    return seen


@pytest.mark.usefixtures("later")
def test_unchanged_files_are_read_once(tmp_path, read):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    first = content_hashes(paths, tmp_path / "cache.json")
    assert len(set(first)) == 3 and sorted(read) == ["a", "b", "c"]
    read.clear()
    assert content_hashes(paths[::-1], tmp_path / "cache.json") == first[::-1] and read == []
    stat = paths[1].stat()
    paths[1].write_text("x")  # as many bytes, and the time set back: the disk knows
    os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content_hashes(paths, tmp_path / "cache.json")[1] != first[1] and read == ["b"]


def test_young_files_are_read_again(tmp_path, read):
    path = tmp_path / "a"
    for text in "xy":
        path.write_text(text)
        content_hashes([path], tmp_path / "cache.json")
    assert read == ["a", "a"]


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("damage", ["", "[", "[]", '{"x": 1}', "null", '{"PATH": [1, 2, 3, "x"]}'])
def test_a_damaged_cache_is_no_harm(tmp_path, damage):
    path, cache = tmp_path / "a", tmp_path / "cache.json"
    path.write_text("text")
    (expected,) = content_hashes([path])
    cache.write_text(damage.replace("PATH", str(path)))
    assert content_hashes([path], cache) == [expected] == content_hashes([path], cache)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "none", "."):
        with pytest.raises(BadFile):
            content_hashes([tmp_path / name])


def test_an_image_of_as_many_bytes_is_another(tmp_path):
    root = write_csv(tmp_path / "set", ["a.bmp,dog,train", "b.bmp,cat,train"])
    cache = tmp_path / "cache.json"
    first = dataset_fingerprint(root, "train", cache)
    assert first == dataset_fingerprint(root, "train") == dataset_fingerprint(root, "train", cache)
    path = root / "images" / "a.bmp"
    size = path.stat().st_size
    Image.new("RGB", (20, 10), "red").save(path)
    assert path.stat().st_size == size
    changed = dataset_fingerprint(root, "train", cache)
    assert changed == dataset_fingerprint(root, "train") != first


def test_a_copy_of_a_data_set_is_the_same(tmp_path):
    root = write_voc(tmp_path / "VOC2007", {"train": {"1": [voc_object("dog")], "x": []}})
    (tmp_path / "other").mkdir()
    copy = shutil.copytree(root, tmp_path / "other" / "VOC2007")
    for path in copy.rglob("*.*"):
        old(path)
    for of in (dataset_fingerprint, truth_fingerprint):
        assert of(root, "train") == of(copy, "train")


def test_truth_is_known_apart_from_what_training_reads(tmp_path):
    root = write_voc(tmp_path / "VOC2007", {"train": {"1": [voc_object("dog")], "2": []}})
    images, truth = dataset_fingerprint(root, "train"), truth_fingerprint(root, "train")
    path = root / "Annotations" / "1.xml"
    path.write_text(path.read_text().replace("<xmin>1<", "<xmin>900<"))  # broken now
    assert truth_fingerprint(root, "train") != truth
    path.write_text(re.sub("<bndbox>.*?</bndbox>", "", path.read_text()))
    assert truth_fingerprint(root, "train") != truth
    assert dataset_fingerprint(root, "train") == images
    with_masks = truth_fingerprint(root, "train")
    Image.new("L", (20, 10)).save(write_image(root / "SegmentationObject" / "1.png"))
    assert truth_fingerprint(root, "train") != with_masks
    assert dataset_fingerprint(root, "train") == images


def test_truth_of_the_other_formats(tmp_path):
    table = write_csv(tmp_path / "csv", ["a.jpg,cat,train"])
    assert truth_fingerprint(table, "train") == truth_fingerprint(table, "test")
    root = write_coco(tmp_path / "coco")
    images, truth = dataset_fingerprint(root, "train"), truth_fingerprint(root, "train")
    (path,) = (root / "annotations").iterdir()
    path.write_text(path.read_text().replace("[2, 1, 6, 4]", "[500, 500, 30, 30]"))
    assert truth_fingerprint(root, "train") != truth
    assert dataset_fingerprint(root, "train") == images
