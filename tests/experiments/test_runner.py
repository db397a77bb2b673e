"""The stage rule: once, resumed, or afresh."""

from dataclasses import replace

import pytest

from experiments.pipeline.runner import Runner, Stage
from experiments.pipeline.work_folder import MARK
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_json
from weaksam_jax.run_folder import RunFolder


class Log:
    def __init__(self, out):
        self.out, self.ran = out, []

    def stage(self, name, settings=0, reads=(), fails=False):
        def run():
            folder = self.out / name
            folder.mkdir(exist_ok=True)
            left = sorted(path.name for path in folder.iterdir() if path.name != MARK)
            self.ran.append((name, left))
            (folder / f"part{settings}").touch()
            if fails:
                raise KeyboardInterrupt
            return {name: {"figure": 1.5}}

        return Stage(name, settings, reads, run)

    def run_stages(self, *stages, wanted=None, seed=0):
        self.ran.clear()
        metrics = Runner(RunFolder(self.out), seed).run(stages, wanted)
        return metrics, [name for name, _ in self.ran]


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path)


def test_second_call_recomputes_nothing(log):
    stages = log.stage("a"), log.stage("b", reads=("a",))
    first, ran = log.run_stages(*stages)
    assert ran == ["a", "b"] and first["a"] == {"figure": 1.5}
    second, ran = log.run_stages(*stages)
    assert ran == [] and second == first == read_json(log.out / "metrics.json")


def test_changed_settings_run_the_stage_and_its_readers_only(log):
    log.run_stages(log.stage("a"), log.stage("b"), log.stage("c", reads=("a",)))
    _, ran = log.run_stages(log.stage("a", 1), log.stage("b"), log.stage("c", reads=("a",)))
    assert ran == ["a", "c"]
    assert log.ran == [("a", []), ("c", [])], "a changed stage starts from an empty folder"


def test_changed_seed_runs_everything(log):
    log.run_stages(log.stage("a"))
    assert log.run_stages(log.stage("a"), seed=1)[1] == ["a"]


def test_interrupted_stage_goes_on_from_what_it_left(log):
    with pytest.raises(KeyboardInterrupt):
        log.run_stages(log.stage("a", fails=True))
    log.run_stages(log.stage("a"))
    assert log.ran == [("a", ["part0"])]


def test_interrupted_stage_with_other_settings_starts_afresh(log):
    with pytest.raises(KeyboardInterrupt):
        log.run_stages(log.stage("a", fails=True))
    log.run_stages(log.stage("a", 1))
    assert log.ran == [("a", [])]


def test_wanted_stages_need_what_they_read(log):
    stages = log.stage("a"), log.stage("b", reads=("a",))
    with pytest.raises(BadInput, match="add a to --stages"):
        log.run_stages(*stages, wanted=["b"])
    log.run_stages(*stages, wanted=["a"])
    assert log.run_stages(*stages, wanted=["b"])[1] == ["b"]


def test_stale_metrics_are_not_reported(log):
    log.run_stages(log.stage("a"), log.stage("b", reads=("a",)))
    metrics, _ = log.run_stages(log.stage("a", 1), log.stage("b", reads=("a",)), wanted=["a"])
    assert "b" not in metrics and "a" in metrics


def test_an_optional_stage_runs_when_it_is_named_and_stays_in_the_metrics(log):
    def stages(settings=0):
        extra = replace(log.stage("extra", settings, reads=("a",)), optional=True)
        return log.stage("a"), extra, replace(log.stage("b", reads=("a",)), shows=("extra",))

    metrics, ran = log.run_stages(*stages())
    assert ran == ["a", "b"] and "extra" not in metrics
    metrics, ran = log.run_stages(*stages(), wanted=["extra", "b"])
    assert ran == ["extra", "b"] and metrics["extra"] == {"figure": 1.5}  # b shows it
    metrics, ran = log.run_stages(*stages())
    assert ran == [] and metrics["extra"] == {"figure": 1.5}
    metrics, ran = log.run_stages(*stages(1))
    assert ran == ["b"] and "extra" not in metrics  # out of date: b no longer shows it
