"""Six training and three test images with random proposals, for all tests here."""

import jax
import numpy as np
import pytest
from configs import vary
from tiny_mil import TINY, train, write_random

from weaksam_jax.data.datasets import open_tags
from weaksam_jax.data.mini_set import write_mini


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """The folder of compiled programs."""
    return tmp_path_factory.mktemp("xla")


@pytest.fixture(scope="module", autouse=True)
def compiled_once(cache):
    """The same step is compiled by many tests: keep it on disk."""
    names = {
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """(train split, test split, root of the proposals) of drawn images."""
    root = tmp_path_factory.mktemp("drawn")
    data = write_mini(root / "data", 0, 6, 3, progress=False)
    rng = np.random.default_rng(0)
    splits = [open_tags(data, name) for name in ("trainval", "test")]
    for split in splits:
        for record in split.records:
            write_random(root / "proposals", split.split, record, rng)
    return *splits, root / "proposals"


@pytest.fixture(scope="session")
def trained(drawn, tmp_path_factory):
    """Parameters of a `TINY` detector after one step; not to be changed."""
    split, _, proposals = drawn
    once = vary(TINY, optim={"pretrain_steps": 0, "steps": 1})
    return train(split, proposals, once, tmp_path_factory.mktemp("trained"))
