"""Faults with typed fields, and the file that they are named after."""

from pathlib import Path

import pytest

from weaksam_jax.errors import BadFile, BadInput, did_you_mean, naming


def test_naming_renames_the_faults_that_it_is_about_alone():
    for about, named in (("detections", "a.json"), ("weights", "found"), (None, "found")):
        with pytest.raises(BadInput) as caught, naming("a.json", "detections"):
            raise BadInput("found", "is wrong", "mend it", about)
        assert str(caught.value) == f"{named}: is wrong; mend it"
        assert isinstance(caught.value, BadFile) == (about == "detections")


def test_a_bad_file_is_a_path():
    error = BadFile("runs/a/pgt.json", "is wrong", "mend it")
    assert error.file == Path("runs/a/pgt.json") and str(error).startswith("runs/a/pgt.json: ")


def test_the_nearest_name_or_the_other_hint():
    assert did_you_mean("predcit", ["pgt", "predict"], "see --help") == "did you mean predict?"
    assert did_you_mean("xyz", ["pgt", "predict"], "see --help") == "see --help"
