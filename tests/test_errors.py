"""Faults with typed fields, and nearest names."""

from pathlib import Path

from weaksam_jax.errors import BadFile, did_you_mean


def test_a_bad_file_is_a_path():
    error = BadFile("runs/a/pgt.json", "is wrong", "mend it")
    assert error.file == Path("runs/a/pgt.json") and str(error).startswith("runs/a/pgt.json: ")


def test_the_nearest_name_or_the_other_hint():
    assert did_you_mean("predcit", ["pgt", "predict"], "see --help") == "did you mean predict?"
    assert did_you_mean("xyz", ["pgt", "predict"], "see --help") == "see --help"
