"""What the stages of the real road may delete."""

import shutil

import pytest
from tiny_road import flags

from experiments import stages
from experiments.options import parse
from experiments.road import Road, Stage
from weaksam_jax.files import read_json


def test_another_seed_keeps_the_embedded_data_set(tiny_data, tmp_path, monkeypatch):
    """The mini set lies in `<out>/data`, where the stage "data" has its name."""

    def write_mini(folder, seed):
        shutil.copytree(tiny_data, folder / "VOC2007")

    monkeypatch.setattr(stages, "write_mini", write_mini)
    for seed in (0, 1):
        command = flags("mini", tmp_path / "run", "--stages", "data", "--seed", str(seed))
        metrics = stages.travel(parse(command, "", ""))
        assert metrics["seed"] == seed and metrics["dataset"]["train_images"] == 8


def test_killed_while_old_work_is_deleted(tmp_path, monkeypatch):
    """What is left of other settings is no work to resume."""
    seen = []

    def stage(settings):
        def run():
            folder = tmp_path / "a"
            folder.mkdir(exist_ok=True)
            seen.append(sorted(path.name for path in folder.iterdir()))
            (folder / f"work of {settings}").touch()
            return {}

        return Stage("a", settings, (), run)

    def killed(*_, **__):
        raise SystemExit

    Road(tmp_path, 0).follow([stage(1)])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(SystemExit):
            Road(tmp_path, 0).follow([stage(2)])
    Road(tmp_path, 0).follow([stage(2)])
    assert seen == [[], []]
    assert read_json(tmp_path / "stages" / "a.json")["metrics"] == {}
