"""Weights that a run's detectors could not start from are refused before its first stage."""

import jax
import numpy as np
import pytest
from configs import vary
from tiny_pipeline import flags, options, with_dino

from experiments import custom
from experiments.pipeline.graph import check_starts
from experiments.pipeline.run import new_run
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags
from weaksam_jax.detectors import save_detector
from weaksam_jax.detectors.dino import Dino
from weaksam_jax.detectors.mil import MilDetector
from weaksam_jax.errors import BadInput
from weaksam_jax.supervision import saw

STAGES = ("wsod", "retrain", "retrain_dino")


def run(tiny_data, tmp_path, *more):
    """A tiny run that retrains both detectors."""
    return new_run(options(*flags(tiny_data, tmp_path / "run", *with_dino(), *more)))


def save(path, detector):
    """Zeros as the detector's weights, which saw tags."""
    params = jax.tree.map(lambda one: np.zeros(one.shape, one.dtype), detector.shapes())
    save_detector(path, detector, params, saw(["tags"], "a test"))
    return str(path)


def test_a_whole_detector_must_have_the_classes_and_sizes_of_the_run(tiny_data, tmp_path, capsys):
    classes = open_tags(tiny_data, "trainval").classes
    config = run(tiny_data, tmp_path).config.retrain_dino
    more = (*with_dino(), "--retrain-dino.optim.init")
    wider = vary(config, model={"queries": 13})
    for other, name in ((Dino(config, 2), "class_heads_0/bias"), (Dino(wider, classes), "query_")):
        path = save(tmp_path / "dino.safetensors", other)
        assert entry_point(custom.main, flags(tiny_data, tmp_path / "run", *more, path)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {path}: {name}") and "has the shape" in line
        assert not (tmp_path / "run").exists()
    save(path, Dino(config, classes))
    check_starts(run(tiny_data, tmp_path, *more, path), STAGES)


def test_the_mil_detectors_own_start_is_looked_at_too(tiny_data, tmp_path):
    config = run(tiny_data, tmp_path).config.wsod
    path = save(tmp_path / "mil.safetensors", MilDetector(config, 3))
    with pytest.raises(BadInput, match=r"mil\.safetensors: .* has the shape"):
        check_starts(run(tiny_data, tmp_path, "--wsod.optim.init", path), STAGES)


@pytest.mark.parametrize("data", ["mini", "folder"])
def test_the_embedded_set_need_not_be_there_yet(tiny_data, tmp_path, data):
    data = data if data == "mini" else tiny_data
    config = run(data, tmp_path).config.wsod
    classes = 7 if data == "mini" else open_tags(data, "trainval").classes
    path = save(tmp_path / "mil.safetensors", MilDetector(config, classes))
    check_starts(run(data, tmp_path, "--wsod.optim.init", path), STAGES)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "stage", "named"),
    [
        ("--retrain-dino.model.backbone resnet50", "retrain_dino", "backbone is mini_cnn, not res"),
        ("--wsod.model.backbone-width 16", "retrain", "backbone_width is 16, not None"),
        ("--retrain-dino.model.backbone-width 8", "retrain_dino", "backbone_width is None, not 8"),
    ],
)
def test_what_starts_from_the_mil_detector_has_its_backbone(
    tiny_data, tmp_path, flag, stage, named
):
    with pytest.raises(BadInput) as caught:
        check_starts(run(tiny_data, tmp_path, *flag.split()), STAGES)
    assert caught.value.path == f"stage {stage}" and named in caught.value.problem
    assert f"--{stage.replace('_', '-')}.optim.init" in caught.value.hint
    check_starts(run(tiny_data, tmp_path, *flag.split()), ["wsod"])


def test_the_backbones_own_width_may_be_named(tiny_data, tmp_path):
    check_starts(run(tiny_data, tmp_path, "--wsod.model.backbone-width", "24"), STAGES)
