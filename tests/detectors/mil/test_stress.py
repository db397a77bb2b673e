"""Spoiled samples are what they say, and a training on nothing else stays finite."""

import numpy as np
import pytest
from configs import vary
from tiny_mil import TINY
from tiny_pipeline import write_run

from experiments.paper.stress import Stress, spoil, stress
from weaksam_jax.errors import BadInput


def test_faults_keep_shapes_and_types():
    rng = np.random.default_rng(0)
    sample = {
        "image": rng.integers(1, 255, (8, 8, 3)).astype(np.uint8),
        "boxes": rng.uniform(0, 8, (4, 4)).astype(np.float32),
        "prior": np.zeros((4, 3), np.float32),
        "valid": np.ones(4, bool),
        "tags": np.array([True, False, True]),
    }
    spoiled = [spoil(sample, kind, rng) for kind in range(7)]
    for one in spoiled:
        assert one.keys() == sample.keys()
        for name, value in one.items():
            assert value.shape == sample[name].shape and value.dtype == sample[name].dtype
            changed = [name for name in one if (one[name] != sample[name]).any()]
        assert len(changed) == 1
    assert not spoiled[0]["valid"].any() and (np.abs(spoiled[1]["prior"]) == 1e4).all()
    assert (spoiled[2]["boxes"][:, 2:] - spoiled[2]["boxes"][:, :2] == 1).all()
    assert (spoiled[3]["boxes"] == sample["boxes"][0]).all()
    assert spoiled[5]["tags"].all() and not spoiled[6]["tags"].any()


@pytest.fixture
def run(drawn):
    """A run folder whose proposals are those of the drawn images."""
    return write_run(drawn[2].parent, "mini")


@pytest.mark.parametrize("method", ["mist", "oicr"])
def test_a_training_on_spoiled_samples_alone_stays_finite(run, tmp_path, method):
    model = {"method": method, "precision": "bfloat16"}
    config = vary(TINY, model=model, optim={"steps": 30})
    found = stress(Stress(run, tmp_path, share=1.0, config=config))
    assert found["steps"] == 30 and 0 < found["largest_weight"] < 100


def test_a_loss_that_is_not_finite_names_its_images(run, tmp_path, monkeypatch):
    """Nothing defends against a prior that is no number."""
    broken = lambda sample, *_: sample | {"prior": np.nan * sample["prior"]}  # noqa: E731
    monkeypatch.setattr("experiments.paper.stress.spoil", broken)
    config = vary(TINY, optim={"steps": 2})
    with pytest.raises(BadInput, match=r"is nan at step 1 \(images [0-9]+, [0-9]+\)"):
        stress(Stress(run, tmp_path, share=1.0, config=config))
