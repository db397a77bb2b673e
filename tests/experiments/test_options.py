"""Flags of the main jobs: preset < --config < flags, what is refused, and what a run keeps."""

import json
from dataclasses import replace

import pytest
from tiny_pipeline import options

from experiments import coco14, custom, detect, evaluate, pgt, predict, voc07, voc12
from experiments.paper import ablation, drop_figures, mil_methods, proposals, stress
from experiments.pipeline import detectors
from experiments.pipeline.config import light, mini, published
from experiments.pipeline.options import read_settings, settings_json
from weaksam_jax.cli import entry_point
from weaksam_jax.detectors import RETRAINERS
from weaksam_jax.errors import BadInput, BadSetting
from weaksam_jax.files import write_json
from weaksam_jax.settings import change

JOBS = (voc07, voc12, coco14, custom)
OTHERS = (detect, evaluate, pgt, predict, ablation, drop_figures, mil_methods, proposals, stress)


@pytest.mark.parametrize("module", [*JOBS, *OTHERS], ids=lambda module: module.__name__)
def test_help_fits_a_screen_and_a_half(module, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        module.main(["--help"])
    said = capsys.readouterr().out
    assert caught.value.code in (0, None)
    assert 10 < len(said.splitlines()) <= 70
    assert "python -m experiments." in said
    if module in JOBS:
        assert "--data" in said and "--config" in said and "--wsod.optim" not in said


def test_help_all_shows_every_setting(capsys):
    with pytest.raises(SystemExit):
        voc07.main(["--help-all", "--preset", "voc07"])
    said = capsys.readouterr().out
    for name in ("wsod.optim.lr", "retrain.loss.drop.start", "pgt.rule", "sam", "masks.empty"):
        assert f"--{name} " in said
    assert len(said.splitlines()) > 300


@pytest.fixture
def stored(tmp_path):
    """settings.json of a run that differs from every preset."""
    made = options("--data", "d", "--seed", "3", "--wsod.optim.lr", "0.5", "--preset", "mini")
    write_json(tmp_path / "settings.json", settings_json(made))
    return made, str(tmp_path / "settings.json")


def test_a_run_is_repeated_and_varied(stored):
    made, path = stored
    assert options("--config", path, "--out", str(made.out)) == replace(made, config=_path(path))
    varied = options("--config", path, "--seed", "4", "--wsod.optim.steps", "9")
    assert varied.seed == 4 and varied.data == "d"
    changed = {"wsod.optim.lr": 0.5, "wsod.optim.steps": 9}
    assert varied.settings == replace(change(mini(), changed), pgt=mini().pgt.resolved())


def _path(text):
    from pathlib import Path

    return Path(text)


def test_preset_then_config_then_flags(tmp_path):
    partial = {"preset": "light", "settings": {"wsod": {"optim": {"lr": 0.5, "steps": 7}}}}
    write_json(tmp_path / "c.json", partial)
    found = options("--data", "d", "--config", str(tmp_path / "c.json"), "--wsod.optim.lr", "2")
    assert found.settings.wsod == change(light().wsod, {"optim.lr": 2.0, "optim.steps": 7})
    assert found.preset == "light" and found.settings.sam == light().sam
    other = options("--data", "d", "--config", str(tmp_path / "c.json"), "--preset", "mini")
    assert other.settings.wsod == change(mini().wsod, {"optim.lr": 0.5, "optim.steps": 7})


def test_the_method_of_a_flag_wins_and_brings_its_recipe(tmp_path):
    write_json(tmp_path / "c.json", {"wsod": "oicr", "preset": "voc07"})
    config = str(tmp_path / "c.json")
    found = options("--data", "d", "--config", config)
    assert found.settings.wsod == published("voc07", "oicr").wsod and found.wsod == "oicr"
    found = options("--data", "d", "--config", config, "--wsod", "mist")
    assert found.settings.wsod == published("voc07", "mist").wsod and found.wsod == "mist"
    found = options("--data", "d", "--preset", "mini", "--wsod.model.method", "wsddn")
    assert found.settings.wsod.model.method == "wsddn"


def test_what_a_run_keeps_is_what_decides_it(stored):
    made, path = stored
    kept = json.loads(_path(path).read_text())
    assert not {"out", "stages", "config"} & kept.keys()
    assert read_settings(_path(path)) == replace(made, out=None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sed": 1}, "sed is unknown; did you mean seed?"),
        ({"settings": {"wsod": {"optim": {"lrr": 1}}}}, "settings.wsod.optim.lrr is unknown; did"),
        ({"settings": {"pgt": {"rule": "papr"}}}, "settings.pgt.rule is 'papr', no choice; did"),
        ({"config": "x.json"}, "config names another file"),
        ([1], "is no object of settings"),
    ],
)
def test_a_config_that_does_not_fit_names_its_file(tmp_path, values, message):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(values))
    with pytest.raises(BadSetting) as caught:
        options("--data", "d", "--config", str(path))
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--wsod.optim.lrr", "1"], "--wsod.optim.lrr: is no flag of this command; did you mean"),
        (["--presett", "mini"], "--presett: is no flag of this command; did you mean --preset?"),
        (["--preset", "huge"], "the command line: invalid choice 'huge' for argument '--preset'"),
        (["--config", "gone.json"], "gone.json: does not exist"),
    ],
)
def test_wrong_flags_end_in_one_line(capsys, flags, message):
    assert entry_point(custom.main, ["--data", "d", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_data_must_be_given_for_ones_own_photos():
    with pytest.raises(BadInput, match="--data: is missing"):
        options()


def test_the_retrainers_are_those_of_the_table_of_detectors():
    for kind, row in RETRAINERS.items():
        assert detectors.retrainer(detectors.retrain_preset(kind, "mini"), 2).kind == kind
        assert {"mini", "light", *detectors.PAPER} <= row.presets.keys()
        found = options("--data", "d", "--retrain", kind)
        assert isinstance(found.settings.retrain, row.Config)
        assert getattr(found.settings, f"retrain_{kind}") is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"retrain": {"optim": {"lr": 0.1}}}, r"retrain is a setting of a stage; nest it"),
        (
            {"wsod.optim.lr": 1},
            r'wsod\.optim\.lr is a setting of a stage; nest it: {"settings": {"wsod"',
        ),
        ({"sam": "sam_mini"}, "sam is a setting of a stage"),
        ({"preset": []}, r"preset is \[\], not text"),
    ],
)
def test_a_file_that_nests_otherwise_is_told_how(tmp_path, values, message):
    write_json(tmp_path / "c.json", values)
    with pytest.raises(BadSetting, match=message):
        options("--data", "d", "--config", str(tmp_path / "c.json"))


def test_flags_that_choose_other_settings_than_the_file_lists_are_refused(stored, tmp_path):
    with pytest.raises(BadInput, match=r"--preset: light is not that of --config \(mini\)"):
        options("--config", stored[1], "--preset", "light")
    paper = options("--data", "d", "--preset", "voc07")
    write_json(tmp_path / "paper.json", settings_json(paper))
    with pytest.raises(BadInput, match="--preset voc07 --wsod oicr without the file"):
        options("--config", str(tmp_path / "paper.json"), "--wsod", "oicr")
    changed = options("--config", stored[1], "--wsod", "oicr")  # one recipe for both
    assert changed.wsod == changed.settings.wsod.model.method == "oicr"
    assert options("--data", "d", "--wsod.model.method", "oicr").wsod == "oicr"
