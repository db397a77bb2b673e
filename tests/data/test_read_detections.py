"""COCO results as they are read: what may be missing, and what is asked for."""

import json

import pytest

from weaksam_jax.data.detections import naming, read_detections
from weaksam_jax.errors import BadInput

ENTRY = {"image_id": "000005", "category_id": 1, "bbox": [0, 0.5, 3, 2]}


def written(tmp_path, value):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("wrap", [list, lambda rows: {"annotations": rows}])
def test_scores_and_masks_are_asked_for_only_where_needed(tmp_path, wrap):
    rows = [{**ENTRY, "score": 0.5, "segmentation": {}}, ENTRY]
    path = written(tmp_path, wrap(rows))
    assert read_detections(path) == rows
    for key in ("score", "segmentation"):
        flags = {"score": {"scores": True}, "segmentation": {"masks": True}}[key]
        with pytest.raises(BadInput, match=f"^{path}: entry 1 has no {key};"):
            read_detections(path, **flags)
        assert read_detections(written(tmp_path, wrap(rows[:1])), **flags) == rows[:1]
        path = written(tmp_path, wrap(rows))


def test_a_score_that_is_there_must_be_a_number(tmp_path):
    path = written(tmp_path, [{**ENTRY, "score": None}])
    with pytest.raises(BadInput, match="entry 0: score is no finite number"):
        read_detections(path)


@pytest.mark.parametrize("value", [{}, {"annotations": {}}, 3, None])
def test_what_is_no_list_of_results_is_refused(tmp_path, value):
    with pytest.raises(BadInput, match="is no COCO results file"):
        read_detections(written(tmp_path, value))


def test_naming_renames_faults_of_detections_alone():
    for said, named in (("detections", "a.json"), ("setting nested", "setting nested")):
        with pytest.raises(BadInput) as caught, naming("a.json"):
            raise BadInput(said, "is wrong", "mend it")
        assert str(caught.value) == f"{named}: is wrong; mend it"
