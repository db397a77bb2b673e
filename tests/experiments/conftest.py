"""One tiny data set and one undisturbed run of the pipeline, for all tests here."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_pipeline import run_pipeline, with_dino, write_tiny


@dataclass(frozen=True)
class Run:
    """A finished run: its data set, folder, and what it said on stderr."""

    data: Path
    out: Path
    said: str


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """The tiny data set (a VOC folder); not to be changed."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, tiny_data) -> Run:
    """The pipeline from begin to end; not to be changed."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return Run(tiny_data, out, run_pipeline(tiny_data, out))


@pytest.fixture(scope="session")
def with_both(undisturbed, tmp_path_factory) -> Run:
    """The same run, and then the same command with a DINO beside the Faster R-CNN; not to be
    changed."""
    out = tmp_path_factory.mktemp("both") / "run"
    shutil.copytree(undisturbed.out, out)
    return Run(undisturbed.data, out, run_pipeline(undisturbed.data, out, *with_dino()))
