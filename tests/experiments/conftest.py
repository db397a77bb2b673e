"""One tiny data set and one undisturbed run of the pipeline, for all tests here."""

from dataclasses import dataclass
from pathlib import Path

import jax
import pytest
from tiny_pipeline import run_pipeline, write_tiny


@dataclass(frozen=True)
class Run:
    """A finished run: its data set, folder, and what it said on stderr."""

    data: Path
    out: Path
    said: str


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """The folder of compiled programs that the runs of this session share."""
    return tmp_path_factory.mktemp("jax_cache")


@pytest.fixture(scope="module")
def compile_once(cache):
    """In this process: the same program is compiled once, however many trainings build it."""
    options = {
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {option: getattr(jax.config, option) for option in options}
    for option, value in options.items():
        jax.config.update(option, value)
    yield
    for option, value in before.items():
        jax.config.update(option, value)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """The tiny data set (a VOC folder); not to be changed."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, cache, tiny_data) -> Run:
    """The pipeline from begin to end; not to be changed."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return Run(tiny_data, out, run_pipeline(cache, tiny_data, out))
