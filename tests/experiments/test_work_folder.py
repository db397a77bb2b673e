"""Folders of work: gone on with, emptied, or left alone."""

import itertools
import json
import shutil

import pytest

from experiments.pipeline import runner
from experiments.pipeline.runner import Runner, Stage
from experiments.pipeline.work_folder import MARK, key_of, open_folder
from weaksam_jax import files
from weaksam_jax.errors import BadFile, BadInput
from weaksam_jax.files import read_json
from weaksam_jax.locks import locked
from weaksam_jax.run_folder import RunFolder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nobody cuts the power here."""
    monkeypatch.setattr(files, "_sync", lambda path: None)
    monkeypatch.setattr(runner, "sync_disk", lambda folder: None)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_work_of_the_same_key_goes_on_and_of_another_is_deleted(tmp_path):
    folder = tmp_path / "wsod"
    assert key_of(folder) is None and not open_folder(folder, "a")
    (folder / "deep").mkdir()
    (folder / "deep" / "checkpoint").touch()
    assert not open_folder(folder, "a") and names(folder) == [MARK, "deep"]
    assert open_folder(folder, "b") and names(folder) == [MARK] and key_of(folder) == "b"


def test_links_are_removed_and_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").touch()
    folder = tmp_path / "wsod"
    open_folder(folder, "a")
    (folder / "link").symlink_to(tmp_path / "mine")
    open_folder(folder, "b")
    assert names(folder) == [MARK] and names(tmp_path / "mine") == ["precious.txt"]
    (tmp_path / "disk").mkdir()
    (tmp_path / "clues").symlink_to(tmp_path / "disk")  # a stage on a larger disk
    open_folder(tmp_path / "clues", "a")
    assert names(tmp_path / "disk") == [MARK]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": "a"}', '{"made_by": "me", "key": 1}'])
def test_a_damaged_mark_is_named_and_nothing_is_deleted(tmp_path, damage):
    open_folder(tmp_path / "wsod", "a")
    (tmp_path / "wsod" / "work").touch()
    (tmp_path / "wsod" / MARK).write_text(damage)
    for key in ("a", "b"):
        with pytest.raises(BadFile, match=r"\.stage\.json.*; give another --out"):
            open_folder(tmp_path / "wsod", key)
    assert names(tmp_path / "wsod") == [MARK, "work"]


def test_what_no_run_made_is_left_alone(tmp_path):
    (tmp_path / "clues").mkdir()
    (tmp_path / "clues" / "mine.txt").write_text("precious")
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    for name in ("clues", "file", "broken"):
        with pytest.raises(BadInput, match="was not made by a run"):
            open_folder(tmp_path / name, "a")
    assert (tmp_path / "clues" / "mine.txt").read_text() == "precious"


def test_a_kill_while_the_first_mark_is_written_leaves_an_empty_folder(tmp_path):
    (tmp_path / "clues").mkdir()
    (tmp_path / "clues" / f".{MARK}.1-2.tmp").touch()
    assert key_of(tmp_path / "clues") is None
    assert not open_folder(tmp_path / "clues", "a")


# Every order of kills, deletions and changes: the results are always those of the present settings.


class Pipeline:
    """Two stages that resume: each adds up what it was asked for, in as many steps as it takes.

    The second reads the first's result; both leave a checkpoint that a resumed run goes on with.
    """

    def __init__(self, root):
        self.root = root

    def stage(self, name, settings, stop, reads=()):
        folder = self.root / name

        def run():
            checkpoint = folder / "checkpoint.json"
            done = read_json(checkpoint) if checkpoint.exists() else []
            told = read_json(self.root / reads[0] / "result.json") if reads else []
            while len(done) < 3:
                done.append([settings, told])
                checkpoint.write_text(json.dumps(done))
                if stop == (name, len(done)):
                    raise KeyboardInterrupt
            (folder / "result.json").write_text(json.dumps(done))
            return {name: settings}

        return Stage(name, settings, reads, run)

    def run(self, first=0, second=0, seed=0, stop=None, wanted=None):
        """One call; a stop is (stage, steps). Returns the metrics, None when it was stopped."""
        stages = self.stage("a", first, stop), self.stage("b", second, stop, reads=("a",))
        try:
            with locked(self.root, "run") as lock:
                return Runner(RunFolder(self.root), seed, lock).run(stages, wanted)
        except (KeyboardInterrupt, BadInput):
            return None

    def check(self, first, second, seed=0):
        """Runs to the end (a damaged file costs a call) and compares with what must come out."""
        metrics = self.run(first, second, seed) or self.run(first, second, seed)
        assert metrics["a"] == first and metrics["b"] == second
        told = 3 * [[first, []]]
        assert read_json(self.root / "a" / "result.json") == told
        assert read_json(self.root / "b" / "result.json") == 3 * [[second, told]]


DAMAGE = {
    "nothing": lambda root: None,
    "mark of a deleted": lambda root: (root / "stages" / "a.json").unlink(missing_ok=True),
    "mark of b deleted": lambda root: (root / "stages" / "b.json").unlink(missing_ok=True),
    "all marks deleted": lambda root: shutil.rmtree(root / "stages", ignore_errors=True),
    "mark of b cut short": lambda root: cut(root / "stages" / "b.json"),
    "folder of a deleted": lambda root: shutil.rmtree(root / "a"),
    "folder of b deleted": lambda root: shutil.rmtree(root / "b", ignore_errors=True),
    "result of a cut short": lambda root: [
        cut(root / "a" / "result.json"),
        (root / "stages" / "b.json").unlink(missing_ok=True),  # so that it is read again
    ],
}


def cut(path):
    if path.exists():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("stop", [None, ("a", 1), ("b", 2)])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("then", [(0, 0), (1, 0), (0, 1)])
def test_old_work_never_passes_for_new(tmp_path, stop, damage, then):
    one = Pipeline(tmp_path / "run")
    one.run(stop=stop)
    DAMAGE[damage](one.root)
    one.run(*then, stop=("b", 1))  # begun with other settings, and killed again
    one.check(*then)
    one.check(0, 0)


@pytest.mark.parametrize("order", list(itertools.permutations(["a", "b", "ab"])))
def test_stages_run_alone_in_any_order(tmp_path, order):
    one = Pipeline(tmp_path / "run")
    for number, wanted in enumerate(order):
        one.run(number, number, wanted=list(wanted))
    one.check(0, 0)
    one.check(2, 0)


def test_another_seed_between_two_kills(tmp_path):
    one = Pipeline(tmp_path / "run")
    one.run(stop=("b", 2))
    one.run(seed=1, stop=("a", 1))
    one.check(0, 0, seed=0)


def test_a_folder_of_the_user_with_the_name_of_a_stage_survives(tmp_path):
    one = Pipeline(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("precious")
    for first in (0, 1):
        assert one.run(first) is None
    assert names(tmp_path / "b") == ["mine.txt"]


def test_what_was_made_of_deleted_results_is_made_again(tmp_path):
    """Stage proposals also writes beside the clue network, in the folder of stage clues."""
    one = Pipeline(tmp_path / "run")
    one.run()
    one.run(first=1, wanted=["a"])
    assert not (one.root / "stages" / "b.json").exists()


def test_a_run_folder_that_is_removed_ends_in_one_line(tmp_path):
    root = tmp_path / "run"

    def run():
        shutil.rmtree(root)
        raise ValueError("what a library says of a file that is gone")

    with (
        locked(root, "run") as lock,
        pytest.raises(BadInput, match="was removed while the command ran"),
    ):
        Runner(RunFolder(root), 0, lock).run([Stage("a", 0, (), run)])


def test_a_stage_folder_that_is_removed_is_no_finished_stage(tmp_path):
    def run():
        shutil.rmtree(tmp_path / "a")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "result").touch()
        return {}

    with pytest.raises(BadInput, match=r"was not made by a run"):
        Runner(RunFolder(tmp_path), 0).run([Stage("a", 0, (), run)])
    assert not (tmp_path / "stages" / "a.json").exists()


def test_another_truth_is_measured_and_nothing_is_made_again(tmp_path):
    ran = []

    def stages(truth):
        def run():
            ran.append("run")
            return {"work": 1}

        return [Stage("a", 0, (), run, measure=lambda: {"figure": truth}, truth=lambda: truth)]

    def call(truth, **more):
        return Runner(RunFolder(tmp_path), 0).run(stages(truth), **more)

    first = call(1)
    assert first["figure"] == 1 and first["work"] == 1
    again = call(2)
    assert again["figure"] == 2 and again["work"] == 1 and ran == ["run"]
    assert again["seconds"] == first["seconds"]
    assert "figure" not in call(3, wanted=[]), "figures of another truth are not reported"
    assert call(3)["figure"] == 3 and call(3) == call(3)
