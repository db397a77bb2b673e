"""Six training and three test images with random proposals, for all tests here."""

import numpy as np
import pytest
from configs import vary
from tiny_mil import TINY, train, write_random

from weaksam_jax.data.datasets import open_tags
from weaksam_jax.data.mini_set import write_mini


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
