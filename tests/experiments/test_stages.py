"""What makes the stages of the real pipeline run again, and what they may delete."""

import shutil

import pytest
from tiny_pipeline import STAGES, flags, options

from experiments.pipeline import graph, work_folder
from experiments.pipeline.config import mini
from experiments.pipeline.options import PipelineOptions
from experiments.pipeline.run import new_run
from experiments.pipeline.runner import Runner, Stage
from experiments.pipeline.work_folder import MARK
from weaksam_jax.data.mini_set import write_mini
from weaksam_jax.data.store import write_manifest
from weaksam_jax.files import read_json
from weaksam_jax.run_folder import RunFolder
from weaksam_jax.settings import change

CHANGES = {
    "": (),
    "--seed 1": STAGES,
    "--weaktr.lr 0.1": STAGES[1:],
    "--lite.penalty 0.1": (),
    "--proposals selective_search": STAGES[2:],
    "--export.prompts.threshold 0.5": STAGES[2:],
    "--sam sam_mini_lite": STAGES[2:],
    "--wsod oicr": STAGES[3:],
    "--wsod.optim.lr 0.1": STAGES[3:],
    "--pgt.rule official": STAGES[4:],
    "--retrain.optim.steps 5": ("retrain", "report"),
    "--retrain.loss.drop none": ("retrain", "report"),
    "--ap50 coco": ("report",),  # the other figures are measured again, nothing is trained
    "--masks.best-of-three": ("masks", "report"),
}


def stage_keys(data, *more):
    run = new_run(options(*flags(data, data.parent, *more)))
    runner = Runner(run.folder, run.seed)
    for stage in graph.graph(run):
        runner.keys[stage.name] = runner.key(stage)
    return runner.keys


@pytest.fixture(scope="module")
def keys(tiny_data):
    return stage_keys(tiny_data)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_setting_concerns_its_stage_and_those_behind_it(tiny_data, keys, change):
    changed = stage_keys(tiny_data, *change.split())
    assert tuple(name for name in STAGES if keys[name] != changed[name]) == CHANGES[change]


WEIGHTS = {
    "--sam {}": STAGES[2:],
    "--clues {}": STAGES[1:],
    "--weaktr.init {}": STAGES[1:],
    "--clues weaktr_paper --weaktr.init {}": STAGES[1:],
    "--wsod.optim.init {}": STAGES[3:],
    "--retrain.optim.init {}": ("retrain", "report"),
}


@pytest.mark.parametrize("flag", WEIGHTS)
def test_other_weights_in_the_same_file_are_other_work(tiny_data, tmp_path, flag):
    path = tmp_path / "weights.safetensors"
    asked = flag.format(path).split()
    path.write_bytes(b"one")
    first = stage_keys(tiny_data, *asked)
    assert stage_keys(tiny_data, *asked) == first
    path.write_bytes(b"two")
    second = stage_keys(tiny_data, *asked)
    assert tuple(name for name in STAGES if first[name] != second[name]) == WEIGHTS[flag]


def test_another_seed_keeps_the_embedded_data_set(tiny_data, tmp_path, monkeypatch):
    """The mini set lies in `<out>/data`, where the stage "data" has its name."""

    def write_mini(folder, seed):
        shutil.copytree(tiny_data, folder / "VOC2007")

    monkeypatch.setattr(graph, "write_mini", write_mini)
    for seed in (0, 1):
        command = flags("mini", tmp_path / "run", "--stages", "data", "--seed", str(seed))
        metrics = graph.run_pipeline(options(*command))
        assert metrics["seed"] == seed and metrics["dataset"]["train_images"] == 8


def test_killed_while_old_work_is_deleted(tmp_path, monkeypatch):
    """What is left of other settings is no work to resume."""
    seen = []

    def stage(settings):
        def run():
            folder = tmp_path / "a"
            folder.mkdir(exist_ok=True)
            seen.append(sorted(path.name for path in folder.iterdir() if path.name != MARK))
            (folder / f"work of {settings}").touch()
            return {}

        return Stage("a", settings, (), run)

    def killed(*_, **__):
        raise SystemExit

    def work():
        return sorted(path.name for path in (tmp_path / "a").iterdir())

    Runner(RunFolder(tmp_path), 0).run([stage(1)])
    with monkeypatch.context() as patch:
        patch.setattr(work_folder, "_content", killed)
        with pytest.raises(SystemExit):
            Runner(RunFolder(tmp_path), 0).run([stage(2)])
    assert work() == [MARK, "work of 1"], "killed before the first file was deleted"
    Runner(RunFolder(tmp_path), 0).run([stage(1)])
    assert seen == [[], []], "what may be half deleted is no work of its own settings either"
    assert read_json(tmp_path / "stages" / "a.json")["metrics"] == {}


@pytest.mark.parametrize(
    ("proposals", "tag_power", "has_clues"),
    [("sam", 0.0, True), ("store", 0.0, False), ("store", 1.0, True)],
)
def test_a_store_made_elsewhere_needs_no_clue_network(tmp_path, proposals, tag_power, has_clues):
    """But for the weights that new photos get from its tags."""
    data = write_mini(tmp_path, 0, train_images=2, test_images=1, progress=False)
    for split in ("trainval", "test"):
        write_manifest(tmp_path / "store", split, [], {})
    settings = change(mini(), {"retrain.test.tag_power": tag_power})
    where = "sam" if proposals == "sam" else str(tmp_path / "store")
    asked = PipelineOptions(str(data), tmp_path / "run", proposals=where, settings=settings)
    run = new_run(asked)
    found = {stage.name: stage for stage in graph.graph(run)}
    assert ("clues" in found) == has_clues == ("clues" in graph.usual_stages(run))
    assert ("clues" in found["proposals"].reads) == (proposals == "sam")
