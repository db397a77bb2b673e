"""COCO results: what may be missing when they are read, and what is written."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from weaksam_jax.data.detections import (
    BadDetections,
    annotation,
    annotation_file,
    as_arrays,
    label_of,
    naming,
    read_detections,
    to_coco,
)
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.errors import BadInput

ENTRY = {"image_id": 5, "category_id": 4, "bbox": [0, 0.5, 3, 2]}
RECORDS = tuple(TagRecord(i, f"{i}.png", Path(f"{i}.png"), 40, 30, ()) for i in (5, 2))
SPLIT = TagSplit("a set", "test", ("cat", "dog"), (4, 9), RECORDS)
BOXES = np.asarray([[1.23456, 2, 11.987654, 7.5], [0, 0, 40, 30]], np.float32)


def written(tmp_path, value):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("wrap", [list, lambda rows: {"annotations": rows}])
def test_scores_and_masks_are_asked_for_only_where_needed(tmp_path, wrap):
    mask = {"size": [30, 40], "counts": [1200]}
    rows = [{**ENTRY, "score": 0.5, "segmentation": mask}, ENTRY]
    path, entry = written(tmp_path, wrap(rows)), "entry 1" if wrap is list else r"annotations\[1\]"
    with pytest.raises(BadInput, match=f"^{path}: {entry}: has no score;"):
        read_detections(path, SPLIT)
    with pytest.raises(BadInput, match=f"^{path}: {entry}: has no segmentation;"):
        read_detections(path, SPLIT, masks="needed", scores=False)
    both = read_detections(path, SPLIT, masks="kept", scores=False)
    rle = {"size": [30, 40], "counts": coco_mask.frPyObjects(mask, 30, 40)["counts"].decode()}
    assert both.masks == [rle, None] and both.scores.tolist() == [0.5, 1]
    assert read_detections(path, SPLIT, scores=False).masks is None
    path = written(tmp_path, wrap(rows[:1]))
    assert read_detections(path, SPLIT, masks="needed").masks == [rle]


@pytest.mark.parametrize("scores", [False, True])
def test_a_score_that_is_there_must_be_a_number(tmp_path, scores):
    path = written(tmp_path, [{**ENTRY, "score": "good"}])
    with pytest.raises(BadInput, match="entry 0: score is no finite number"):
        read_detections(path, SPLIT, scores=scores)


@pytest.mark.parametrize("value", [{}, {"annotations": {}}, 3, None, "a", {"5": []}])
def test_what_is_no_list_of_results_is_refused(tmp_path, value):
    with pytest.raises(BadInput, match="is no COCO results file"):
        read_detections(written(tmp_path, value), SPLIT)


def test_what_is_clear_is_read(tmp_path):
    odd = {"image_id": "5", "category_id": 9.0, "bbox": ["1", 2, "3.5", 4], "score": "9e-1"}
    path = written(tmp_path, [odd, {**ENTRY, "image_id": "2.png", "score": 1, "caption": "x"}])
    table = read_detections(path, SPLIT)
    assert table.image.tolist() == [0, 1] and table.labels.tolist() == [1, 0]
    assert table.xywh.tolist() == [[1, 2, 3.5, 4], ENTRY["bbox"]]
    assert table.scores.tolist() == [0.9, 1]


def test_naming_renames_faults_of_detections_alone():
    mine = BadDetections("is wrong", "mend it")
    for raised, named in ((mine, "a.json"), (BadInput("detections", "is wrong", "mend it"), None)):
        with pytest.raises(BadInput) as caught, naming("a.json"):
            raise raised
        assert str(caught.value) == f"{named or 'detections'}: is wrong; mend it"


def test_written_results_have_the_documented_digits_and_keep_every_float32_score_apart():
    close = np.asarray([0.1, np.nextafter(np.float32(0.1), np.float32(1))], np.float32)
    one, two = to_coco(RECORDS[0], SPLIT, BOXES, close, np.asarray([1, 0]))
    assert one == {"image_id": 5, "file_name": "5.png", "category_id": 9,
                   "bbox": [1.23, 2.0, 10.75, 5.5], "score": 0.100000001}  # fmt: skip
    assert (two["category_id"], two["bbox"]) == (4, [0, 0, 40, 30])
    assert one["score"] < two["score"] and np.float32(two["score"]) == close[1]
    (whole,) = to_coco(RECORDS[0], SPLIT, BOXES[:1], close[:1], [0], digits=None)
    assert whole["bbox"] == [float(v) for v in (*BOXES[0, :2], *(BOXES[0, 2:] - BOXES[0, :2]))]
    assert json.loads(json.dumps([one, two])) == [one, two]


def test_arrays_of_written_results_are_the_same_boxes():
    labels = np.asarray([1, 0])
    rows = to_coco(RECORDS[1], SPLIT, BOXES, np.asarray([0.5, 0.25]), labels, digits=None)
    table = as_arrays(rows, SPLIT)
    np.testing.assert_array_equal(table.image, [1, 1])
    np.testing.assert_array_equal(table.labels, labels)
    np.testing.assert_array_equal(table.scores, [0.5, 0.25])
    np.testing.assert_allclose(table.boxes, BOXES, rtol=1e-6)
    assert label_of(SPLIT) == {4: 0, 9: 1}
    empty = as_arrays([], SPLIT)
    assert empty.boxes.shape == (0, 4) and empty.image.shape == empty.labels.shape == (0,)


def test_rows_by_image_and_class_and_no_stranger():
    rows = to_coco(RECORDS[1], SPLIT, BOXES, [0.5, 0.75], [1, 0])
    table = as_arrays(rows, SPLIT)
    assert [own.tolist() for own in table.of_images()] == [[], [0, 1]]
    assert [own.tolist() for own in table.of_classes()] == [[1], [0]]
    for change in ({"image_id": 7}, {"category_id": 1}):
        with pytest.raises(BadDetections, match="which a set/test does not have"):
            as_arrays([{**rows[0], **change}], SPLIT)


def test_a_table_is_that_of_its_own_split_and_has_the_masks_that_were_read():
    table = as_arrays(to_coco(RECORDS[1], SPLIT, BOXES, [0.5, 0.75], [1, 0]), SPLIT)
    assert as_arrays(table, SPLIT) is table
    with pytest.raises(BadDetections, match="were read without masks"):
        as_arrays(table, SPLIT, masks=True)
    for change in ({"records": RECORDS[:1]}, {"category_ids": (9, 4)}):
        with pytest.raises(BadDetections, match="were read for another split than a set/test"):
            as_arrays(table, replace(SPLIT, **change))
    second = table.in_images(np.asarray([False, True]))
    assert second.image.tolist() == [0, 0] and second.images == (2,)
    assert len(table.in_images(np.asarray([True, False]))) == 0


def test_an_annotation_file_numbers_its_rows_and_names_images_and_categories():
    rows = [annotation(2, 9, BOXES[1].astype(float), score=0.5), annotation(5, 4, BOXES[1])]
    made = annotation_file(SPLIT, rows, "by hand")
    assert made["info"] == {"description": "by hand"}
    assert [one["id"] for one in made["annotations"]] == [1, 2]
    expected = {"id": 1, "image_id": 2, "category_id": 9, "score": 0.5, "iscrowd": 0}
    assert made["annotations"][0] == {**expected, "bbox": [0, 0, 40, 30], "area": 1200}
    assert made["images"][0] == {"id": 5, "file_name": "5.png", "width": 40, "height": 30}
    assert made["categories"] == [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]


@pytest.mark.parametrize("empty", [0, False, "", {}, 0.0])
@pytest.mark.parametrize("count", [1, 2])
def test_empty_values_are_no_masks(tmp_path, empty, count):
    rows = [{**ENTRY, "score": 0.5, "segmentation": empty} for _ in range(count)]
    with pytest.raises(BadInput, match=r"entry 0: segmentation (is neither|has size)"):
        read_detections(written(tmp_path, rows), SPLIT)


@pytest.mark.parametrize("others", [[], [None], [[]], [{"size": [30, 40], "counts": [1200]}]])
def test_no_polygons_are_no_mask(tmp_path, others):
    rows = [{**ENTRY, "score": 0.5, "segmentation": one} for one in ([], *others)]
    rows.append({**ENTRY, "score": 0.5})
    masks = read_detections(written(tmp_path, rows), SPLIT, masks="kept").masks
    assert masks[0] is None and masks[-1] is None
    assert [type(one) for one in masks[1:-1]] == [
        dict if isinstance(one, dict) else type(None) for one in others
    ]
