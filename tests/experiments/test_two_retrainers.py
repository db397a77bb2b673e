"""`--retrain faster_rcnn,dino`: a stage, a section and a folder for each, from flags and files."""

import shutil
from dataclasses import replace

import pytest
from tiny_pipeline import flags, options

from experiments.pipeline import graph
from experiments.pipeline.config import light, mini, published
from experiments.pipeline.options import read_settings, settings_json
from experiments.pipeline.run import new_run
from experiments.pipeline.runner import Runner
from weaksam_jax.detectors.dino import DinoConfig
from weaksam_jax.detectors.dino.loss_config import QueryDropConfig
from weaksam_jax.detectors.faster_rcnn.config import DropConfig, FasterRcnnConfig
from weaksam_jax.errors import BadInput, BadSetting
from weaksam_jax.files import write_json
from weaksam_jax.settings import change

BOTH = ("--data", "d", "--retrain", "faster_rcnn,dino")


def test_the_first_has_the_usual_section_and_a_further_one_its_own():
    found = options(*BOTH, "--retrain-dino.optim.steps", "7", "--retrain.optim.steps", "9")
    assert found.settings.retrain == change(light().retrain, {"optim.steps": 9})
    wanted = change(light("mist", "dino").retrain, {"optim.steps": 7})
    assert found.settings.retrain_dino == wanted and found.settings.retrain_faster_rcnn is None
    turned = options("--data", "d", "--retrain", "dino,faster_rcnn", "--preset", "mini")
    assert isinstance(turned.settings.retrain, DinoConfig)
    assert turned.settings.retrain_faster_rcnn == mini().retrain
    paper = published("voc07", "mist", "faster_rcnn,dino")
    assert paper.retrain_dino.optim.init == "weights/resnet50.safetensors"
    assert paper.retrain.optim.init == "weights/R-50.safetensors"


def test_settings_of_both_are_kept_and_read_again(tmp_path):
    made = options(
        *BOTH, "--retrain-dino.loss.drop.percentile", "80", "--retrain-dino.test.nms", "0"
    )
    path = tmp_path / "settings.json"
    write_json(path, settings_json(made))
    assert read_settings(path) == replace(made, out=None)
    again = options("--config", str(path), "--retrain-dino.optim.steps", "3")
    assert again.settings.retrain_dino.loss.drop.percentile == 80
    assert again.settings.retrain_dino.optim.steps == 3 and again.retrain == made.retrain
    none = options("--config", str(path), "--retrain", "none")
    assert none.settings.retrain_dino is None and not new_run(none).retrainings


def test_a_partial_file_takes_the_retrainers_of_the_flag(tmp_path):
    path = tmp_path / "c.json"
    write_json(path, {"retrain": "dino", "settings": {"retrain": {"optim": {"steps": 4}}}})
    found = options("--data", "d", "--config", str(path))
    assert (
        isinstance(found.settings.retrain, DinoConfig) and found.settings.retrain.optim.steps == 4
    )
    other = options("--data", "d", "--config", str(path), "--retrain", "faster_rcnn,dino")
    assert isinstance(other.settings.retrain, FasterRcnnConfig)
    assert other.settings.retrain.optim.steps == 4 and other.settings.retrain_dino is not None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("dion", "--retrain: names dion, no detector; did you mean dino?"),
        ("dino,dino", "--retrain: names dino twice; name it once"),
        ("dino,none", "--retrain: names none, no detector; "),
        ("yolo", "--retrain: names yolo, no detector; choose from faster_rcnn, dino, several"),
        ("", "--retrain: names , no detector; choose from"),
    ],
)
def test_other_names_are_refused(names, message):
    with pytest.raises(BadInput) as caught:
        options("--data", "d", "--retrain", names)
    assert str(caught.value).startswith(message)


def test_settings_of_a_detector_that_is_not_retrained_are_refused(tmp_path):
    with pytest.raises(BadInput, match="there are settings of retrain_dino; name dino behind a"):
        options("--data", "d", "--retrain-dino.optim.steps", "3")
    made = settings_json(options(*BOTH))
    write_json(tmp_path / "c.json", made | {"retrain": "faster_rcnn"})
    with pytest.raises(BadSetting, match=r"c\.json: retrain is faster_rcnn, but there are"):
        read_settings(tmp_path / "c.json")
    made["settings"] |= {"retrain_dino": None}
    write_json(tmp_path / "c.json", made)
    with pytest.raises(BadSetting, match="the settings retrain_dino are not of dino"):
        read_settings(tmp_path / "c.json")
    with pytest.raises(BadInput, match="--retrain: dino is not that of --config"):
        options("--config", str(stored(tmp_path)), "--retrain", "dino")


def stored(folder):
    write_json(folder / "both.json", settings_json(options(*BOTH)))
    return folder / "both.json"


def test_a_dropped_part_comes_back_as_its_own_detectors(tmp_path):
    """RoI drop of Faster R-CNN, query drop of DINO, though both are called loss.drop."""
    found = options(*BOTH, "--retrain.loss.drop", "none", "--retrain-dino.loss.drop", "none")
    assert found.settings.retrain.loss.drop is found.settings.retrain_dino.loss.drop is None
    path, none = tmp_path / "c.json", {"loss": {"drop": None}}
    write_json(path, {"settings": {"retrain": none, "retrain_dino": none}})
    given = (*BOTH, "--config", str(path))
    found = options(*given, "--retrain.loss.drop.tau-cls", "3").settings
    assert found.retrain.loss.drop == DropConfig(tau_cls=3.0)
    assert found.retrain_dino.loss.drop is None
    found = options(*given, "--retrain-dino.loss.drop.percentile", "70").settings
    assert found.retrain_dino.loss.drop == QueryDropConfig(percentile=70.0)


def keys(data, *more):
    run = new_run(options(*flags(data, data.parent, *more)))
    runner = Runner(run.folder, run.seed)
    for stage in graph.graph(run):
        runner.keys[stage.name] = runner.key(stage)
    return runner.keys, run


def test_a_further_detector_is_a_stage_of_its_own(tiny_data):
    alone, _ = keys(tiny_data)
    both, run = keys(tiny_data, "--retrain", "faster_rcnn,dino")
    new = {"retrain_dino", "retrain_dino_without_drop"}
    assert both.keys() - alone.keys() == new
    assert {name for name in alone if alone[name] != both[name]} == {"report"}
    assert graph.usual_stages(run)[5:8] == ["retrain", "retrain_dino", "masks"]
    longer, _ = keys(tiny_data, "--retrain", "faster_rcnn,dino", "--retrain-dino.optim.steps", "5")
    assert {name for name in both if both[name] != longer[name]} == {*new, "report"}


def test_stages_are_known_where_they_are_retrained(tiny_data, tmp_path):
    command = flags(tiny_data, tmp_path / "run", "--stages", "retrain_dino")
    with pytest.raises(BadInput, match="--stages: retrain_dino is no stage"):
        graph.run_pipeline(options(*command))
    (tmp_path / "run" / "retrain_dino").mkdir(parents=True)
    (tmp_path / "run" / "retrain_dino" / "mine.txt").write_text("x")
    with pytest.raises(BadInput, match="retrain_dino: was not made by a run"):
        graph.run_pipeline(options(*flags(tiny_data, tmp_path / "run", "--stages", "data")))
    shutil.rmtree(tmp_path / "run")
