"""COCO results of any number: read and written a part at a time, as if it were at once."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from weaksam_jax.data import json_parts
from weaksam_jax.data.detections import read_detections, to_coco, write_results
from weaksam_jax.data.json_parts import NotPlain, list_parts
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_json, write_json

RECORDS = tuple(TagRecord(i, f"{i}.png", Path(f"{i}.png"), 40, 30, ()) for i in range(1, 9))
SPLIT = TagSplit("a set", "test", ("cat", "dog"), (4, 9), RECORDS)
EMPTY = coco_mask.frPyObjects({"size": [30, 40], "counts": [1200]}, 30, 40)
MASK = {"size": [30, 40], "counts": EMPTY["counts"].decode()}


@pytest.fixture
def small_parts(monkeypatch):
    """So many characters are read at once."""

    def set_size(size):
        shorter = partial(list_parts, size=size)
        monkeypatch.setattr("weaksam_jax.data.detections.list_parts", shorter)

    return set_size


def results(count, seed=0):
    """Lists of results of each image; every third row has a mask."""
    rng = np.random.default_rng(seed)
    found = []
    for record in RECORDS:
        corner = rng.uniform(0, 20, (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(1, 9, (count, 2))], 1)
        rows = to_coco(record, SPLIT, boxes, rng.random(count), rng.integers(0, 2, count))
        found.append([row | ({"segmentation": MASK} if i % 3 == 0 else {})
                      for i, row in enumerate(rows)])  # fmt: skip
    return found


def columns(table):
    names = ("image", "xywh", "scores", "labels")
    return {name: getattr(table, name).tolist() for name in names} | {"masks": table.masks}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("size", [40, 300, 1500, 10**6])
def test_parts_are_the_whole_however_long_they_are(tmp_path, small_parts, size, indent):
    rows = [row for own in results(5) for row in own]
    path = tmp_path / "found.json"
    write_json(path, rows, indent=indent)
    small_parts(10**9)
    whole = read_detections(path, SPLIT, masks="kept")
    parts = list(list_parts(path, size))
    assert [row for part in parts for row in part] == rows
    assert size > 10**5 or len(parts) > 2
    small_parts(size)
    assert columns(read_detections(path, SPLIT, masks="kept")) == columns(whole)


def test_no_more_than_a_part_of_a_long_file_is_ever_in_memory(tmp_path, small_parts, monkeypatch):
    path, longest = tmp_path / "found.json", []
    write_results(path, results(200))
    original = json_parts.parse_json

    def parse(text, path):
        longest.append(len(text))
        return original(text, path)

    monkeypatch.setattr(json_parts, "parse_json", parse)
    monkeypatch.setattr("weaksam_jax.data.detections.read_json", None)
    small_parts(4000)
    assert len(read_detections(path, SPLIT)) == 200 * len(RECORDS)
    assert len(longest) > 40 and max(longest) < 9000 < path.stat().st_size / 20


def test_written_in_parts_are_the_bytes_of_the_whole(tmp_path):
    shown = [[], *results(3), []]
    taken = iter(shown)
    assert write_results(tmp_path / "parts.json", taken) == 3 * len(RECORDS)
    assert next(taken, None) is None
    write_json(tmp_path / "whole.json", [row for own in shown for row in own])
    both = [(tmp_path / f"{name}.json").read_bytes() for name in ("parts", "whole")]
    assert both[0] == both[1]
    write_results(tmp_path / "none.json", [[], []])
    assert (tmp_path / "none.json").read_text() == "[]\n"
    with pytest.raises(ValueError):
        write_results(tmp_path / "nan.json", [[{"score": 1.0}], [{"score": float("nan")}]])
    with pytest.raises(BadInput, match="not UTF-8"):
        write_results(tmp_path / "half.json", [[{"file_name": "a\udcff"}]])
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "none.json", "parts.json", "whole.json",
    ]  # fmt: skip


@pytest.mark.parametrize("place", [0, 11, 38])
def test_a_fault_in_any_part_is_named_by_its_place_in_the_file(tmp_path, small_parts, place):
    rows = [row for own in results(5) for row in own]
    rows[place]["bbox"] = [1, 2, -3, 4]
    write_json(tmp_path / "found.json", rows)
    small_parts(500)
    with pytest.raises(BadInput, match=rf"found.json: entry {place}: bbox is inverted"):
        read_detections(tmp_path / "found.json", SPLIT)


ODD = {
    "an object": b'{"annotations": []}',
    "a text that looks like a gap": b'[{"a": "x}, {y"}, {"a": 2}, {"a": "}, {"}]',
    "a gap between nested objects": b'[{"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}, {"b": 2}]}]',
    "another encoding": '[{"a": 1}, {"a": 2}]'.encode("utf-16"),
    "a byte-order mark": b'\xef\xbb\xbf[{"a": 1}, {"a": 2}]',
    "no items": b"[]",
    "numbers": b"[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]",
    "lines that end in CRLF": b'[{"a": 1},\r\n {"a": 2},\r\n{"a": 3}]\r\n',
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
@pytest.mark.parametrize("size", [5, 17, 10**6])
def test_what_is_written_otherwise_is_the_same_or_read_as_a_whole(tmp_path, data, size):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    try:
        found = [one for part in list_parts(path, size) for one in part]
    except NotPlain:
        assert data not in (ODD["no items"], ODD["numbers"])
        return
    assert found == read_json(path)


GOOD = b'{"image_id": 1, "category_id": 4, "bbox": [0, 0, 1, 1], "score": 0.5}'


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (b'{"a": 3', "is not JSON"),
        (b'{"a": NaN}]', r"\[4\].a is NaN"),
        (b'{"a": 3, "a": 4}]', "key 'a' stands twice"),
        (GOOD + b"] more", "is not JSON"),
        (b'{"a": "\xff"}]', "is not UTF-8"),
    ],
)
def test_faults_of_json_are_named_as_ever(tmp_path, small_parts, end, message):
    path = tmp_path / "found.json"
    path.write_bytes(b"[" + b", ".join([*[GOOD] * 4, end]))
    small_parts(80)
    with pytest.raises(BadInput, match=f"found.json: .*{message}"):
        read_detections(path, SPLIT)
    with pytest.raises(BadInput, match="does not exist"):
        read_detections(tmp_path / "gone.json", SPLIT)
