"""Opening a run folder: what it says of itself, and what it cannot say."""

import json

import pytest
from tiny_pipeline import write_run

from experiments.pipeline.run import open_run
from weaksam_jax.errors import BadInput, BadSetting


def test_a_run_is_opened_as_it_was_asked_for(tiny_data, tmp_path):
    run = open_run(write_run(tmp_path / "run", tiny_data, sam="other"))
    assert run.config.sam == "other" and run.folder.root == tmp_path / "run" and run.seed == 0
    assert dict(run.data.names) == {"train": "trainval", "test": "test"}
    assert run.proposals == tmp_path / "run" / "proposals" and run.exports
    assert open_run(tmp_path / "run", "elsewhere").data.path.name == "elsewhere"


def test_a_run_that_was_moved_keeps_its_mini_set(tmp_path):
    write_run(tmp_path / "run", "mini")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert open_run(tmp_path / "moved").data.path == tmp_path / "moved" / "data" / "VOC2007"


def test_names_of_another_version_are_refused(tiny_data, tmp_path):
    path = write_run(tmp_path / "run", tiny_data) / "settings.json"
    stored = json.loads(path.read_text())
    stored["settings"]["masks"]["forgotten"] = 1
    path.write_text(json.dumps(stored))
    with pytest.raises(BadSetting, match=r"settings\.masks\.forgotten is unknown") as caught:
        open_run(tmp_path / "run")
    assert caught.value.path == str(path)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match="is no run folder"):
        open_run(tmp_path)


def test_a_data_set_of_tags_alone_has_no_truth_to_give(tmp_path, tiny_data):
    run = open_run(write_run(tmp_path / "run", tiny_data))
    assert run.data.truth("test") is run.data.truths["test"]
    vars(run.data)["truths"] = {"test": None}
    with pytest.raises(BadInput, match="has no boxes to compare with"):
        run.data.truth("test")
