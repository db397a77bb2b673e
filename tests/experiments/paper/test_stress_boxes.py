"""Spoiled samples of retrained detectors, and trainings on nothing else."""

import json

import numpy as np
import pytest
from configs import vary
from small_dino import SMALL as DINO
from small_faster_rcnn import SMALL as FASTER_RCNN
from tiny_pipeline import write_run

from experiments.paper.stress import BOX_FAULTS, Stress, long_training, main, spoil_boxes, stress
from weaksam_jax.cli import entry_point
from weaksam_jax.data.mini_set import write_mini
from weaksam_jax.files import write_json
from weaksam_jax.run_folder import RunFolder


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 20, (4, 2))
    return {
        "image": rng.integers(1, 255, (48, 64, 3)).astype(np.uint8),
        "size": np.array([40, 60], np.float32),
        "boxes": np.concatenate([low, low + rng.uniform(5, 20, (4, 2))], 1).astype(np.float32),
        "labels": np.arange(4, dtype=np.int32),
        "valid": np.ones(4, bool),
        "image_id": np.int64(3),
    }


def test_faults_keep_shapes_types_and_what_they_do_not_spoil(sample):
    rng = np.random.default_rng(0)
    before = {name: value.copy() for name, value in sample.items()}
    spoiled = [spoil_boxes(sample, kind, rng) for kind in range(BOX_FAULTS)]
    changed = []
    for one in spoiled:
        assert one.keys() == sample.keys()
        for name, value in one.items():
            assert value.shape == sample[name].shape and value.dtype == sample[name].dtype
        changed.append([name for name in one if (one[name] != sample[name]).any()])
    wanted = ["valid", "boxes", "boxes", "boxes", "image", "image size boxes"]
    assert [sorted(names) for names in changed] == [sorted(names.split()) for names in wanted]
    for name, value in before.items():
        np.testing.assert_array_equal(sample[name], value)  # samples may be shared
    no_object, pixels, twins, whole, _, one_pixel = spoiled
    assert not no_object["valid"].any()
    assert (pixels["boxes"][:, 2:] - pixels["boxes"][:, :2] == 1).all()
    assert (twins["boxes"] == sample["boxes"][0]).all()
    assert (whole["boxes"] == [0, 0, 60, 40]).all()
    assert (one_pixel["size"] == 1).all() and (one_pixel["boxes"] == [0, 0, 1, 1]).all()
    assert (one_pixel["image"] > 0).any(-1).sum() == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder whose pseudo boxes are true ones."""
    folder = tmp_path_factory.mktemp("stress")
    data = write_mini(folder / "data", 1, train_images=6, test_images=1, progress=False)
    made = RunFolder(write_run(folder / "run", data))
    boxes = [
        {"image_id": image, "category_id": image % 3 + 1, "bbox": [4 * k, 8.0, 30.0 + k, 40.0]}
        for image in range(1, 7)
        for k in range(3)
    ]
    write_json(made.pseudo_boxes(), {"annotations": boxes})
    return made.root


@pytest.mark.parametrize("config", [DINO, FASTER_RCNN], ids=["dino", "faster_rcnn"])
def test_a_training_on_spoiled_samples_alone_stays_finite(run, tmp_path, config):
    small = vary(config, model={"precision": "bfloat16"}, optim={"steps": 30, "lr": 1e-2})
    found = stress(Stress(run, tmp_path, share=1.0, config=small))
    assert found["steps"] == 30 and 0 < found["largest_weight"] < 100
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 30 and np.isfinite(log[-1]["loss"])


def test_the_flag_chooses_the_detectors_own_settings(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("experiments.paper.stress.stress", asked.append)
    flags = ["--run", "r", "--out", "o"]
    assert entry_point(main, [*flags, "--detector", "dino", "--config.model.queries", "7"]) == 0
    assert asked[0].config == vary(long_training("dino"), model={"queries": 7})
    assert (asked[0].config.optim.steps, asked[0].config.model.precision) == (2000, "bfloat16")
    assert entry_point(main, flags) == 0 and asked[1].config == long_training("mil")
    capsys.readouterr()
    assert entry_point(main, [*flags, "--detector", "dinno"]) == 2
    assert "did you mean dino?" in capsys.readouterr().err
    assert entry_point(main, [*flags, "--config.model.queries", "7"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
