"""Several processes on one split: ranks, kills, ends at the same moment, a full disk."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from small_sam import blocky_image, small_sam
from test_export import SETTINGS, FakeClues, contents

from bridge.export import main
from bridge.proposals.export import LEFTOVER_AGE, export_split
from bridge.proposals.verify import verify_split
from bridge.runtime.ranks import gpu_of_process, shard_of_process
from bridge.weights.checkpoints import save_tensors
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags
from weaksam_jax.data.store import proposal_path, read_manifest
from weaksam_jax.errors import BadInput

IMAGES = 9


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    rows = ["file,tags,split", "0.png,cat,test"]
    for i in range(IMAGES + 1):
        Image.fromarray(blocky_image(i, 40 + i, 60)).save(folder / "images" / f"{i}.png")
        rows += [f"{i}.png,{'cat;dog' if i % 2 else 'cat'},train"] * (i > 0)
    (folder / "tags.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def flags(data, tmp_path_factory):
    """Of a command with clues of a small Lite0 head and sam_mini; the folder goes last."""
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.normal(0, 1, (2, 1280)).astype(np.float32))
    path = tmp_path_factory.mktemp("weights") / "head.safetensors"
    recipe = {"long_side": 64, "tta_scales": [1.0], "tta_flip": False}
    tensors = {"weight": weight, "bias": torch.zeros(2)}
    save_tensors(path, tensors, {"settings": json.dumps(recipe)})
    return ["--data", str(data), "--split", "train", "--clues", str(path), "--out"]


def start(flags, out, **environment):
    """The command in a process of its own, with one thread and nothing of our own rank."""
    ranks = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS")
    kept = {name: value for name, value in os.environ.items() if name not in ranks}
    command = [sys.executable, "-m", "bridge.export", *flags, str(out)]
    kept |= {"OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        command, env=kept, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


@pytest.mark.slow
def test_a_worker_killed_and_started_again_changes_nothing(flags, tmp_path):
    """Three workers by their ranks, one killed outright and restarted: the bytes of one worker."""
    out, whole = tmp_path / "three", tmp_path / "one"
    ranks = [{"RANK": str(i), "WORLD_SIZE": "3"} for i in range(2)]
    ranks += [{"SLURM_PROCID": "2", "SLURM_NTASKS": "3"}]
    workers = [start(flags, out, **rank) for rank in ranks]
    records = open_tags(flags[1], "train").records[1::3]
    mine = [proposal_path(out, "train", record.image_id) for record in records]
    deadline = time.monotonic() + 600  # a busy machine may give a start minutes
    while not any(path.exists() for path in mine) and time.monotonic() < deadline:
        assert workers[1].poll() is None, "ended before its first image"
        time.sleep(0.002)
    workers[1].kill()
    assert workers[1].wait() == -signal.SIGKILL
    written = sum(path.exists() for path in mine)
    assert 1 <= written < len(mine), "killed too late: nothing was left to do"
    assert read_manifest(out, "train") is None
    workers[1] = start(flags, out, **ranks[1])
    said = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    for index, text in enumerate(said):
        assert f"shard {index}/3" in text
    assert f"{len(mine) - written} images written, {written} there already" in said[1]

    assert entry_point(main, [*flags, str(whole)]) == 0
    names = {name: data for name, data in contents(out).items() if not name.endswith(".tmp")}
    assert names == contents(whole) and len(names) == 2 * IMAGES + 1
    assert verify_split(out, "train", progress=False) == IMAGES


class Together(FakeClues):
    """A clue network that waits, at its last image, for the other worker's last image."""

    def __init__(self, barrier, images):
        super().__init__()
        self.barrier, self.images = barrier, images

    def __call__(self, image, class_ids):
        clues = super().__call__(image, class_ids)
        if len(self.asked) == self.images:
            self.barrier.wait()
        return clues


def test_workers_that_end_at_the_same_moment_leave_one_manifest(data, tmp_path):
    split, sam = open_tags(data, "train"), small_sam()
    split = type(split)("toy", "train", ("a", "b"), (1, 2), split.records[:4])
    places = tmp_path / "whole" / "p", tmp_path / "whole" / "c"
    export_split(split, FakeClues(), sam, SETTINGS, *places, progress=False, workers=1)
    for attempt in range(5):
        barrier, reports = threading.Barrier(2, timeout=60), []
        out = tmp_path / str(attempt)

        def work(index, out=out, barrier=barrier, reports=reports):
            network, shard = Together(barrier, 2), (index, 2)
            folders = out / "p", out / "c"
            done = export_split(split, network, sam, SETTINGS, *folders, shard, False, 1)
            reports.append(done.complete)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(reports) == 2 and any(reports)
        assert contents(out) == contents(tmp_path / "whole")


def test_leftovers_of_killed_processes_go_with_the_manifest(data, tmp_path):
    split = open_tags(data, "train")
    folder = proposal_path(tmp_path / "p", "train", 1).parent
    folder.mkdir(parents=True)
    old, young = folder / ".1.safetensors.7-ab.tmp", folder / ".1.safetensors.8-ab.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    long_ago = time.time() - LEFTOVER_AGE - 5
    os.utime(old, (long_ago, long_ago))
    folders = tmp_path / "p", tmp_path / "c"
    export_split(split, None, small_sam(), SETTINGS, *folders, progress=False, workers=1)
    assert not old.exists() and young.exists()  # the young one may be somebody's


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, (0, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (1, 2)),
    ],
)
def test_ranks(environment, shard):
    assert shard_of_process(environment) == shard


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "0"},
        {"WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"SLURM_PROCID": "x", "SLURM_NTASKS": "2"},
    ],
)
def test_half_a_rank_is_refused(environment):
    with pytest.raises(
        BadInput, match=r"^(RANK and WORLD_SIZE|SLURM_PROCID and SLURM_NTASKS): are"
    ):
        shard_of_process(environment)


def test_gpus_by_local_rank():
    assert [gpu_of_process({"LOCAL_RANK": str(i)}, 4) for i in range(6)] == [0, 1, 2, 3, 0, 1]
    assert gpu_of_process({"LOCAL_RANK": "1", "SLURM_LOCALID": "2"}, 4) == 1
    assert gpu_of_process({"SLURM_LOCALID": "2"}, 4) == 2
    # One GPU a task is visible where the scheduler hides the others.
    assert gpu_of_process({"SLURM_LOCALID": "2"}, 1) == 0 and gpu_of_process({}, 4) == 0


def test_shard_goes_before_ranks(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    common = ["--data", str(data), "--split", "train", "--proposals", "selective_search", "--out"]
    assert entry_point(main, [*common, str(tmp_path), "--shard", "0/1"]) == 0
    assert (
        "9 images written, 0 there already; train, shard 0/1: complete" in capsys.readouterr().out
    )
    assert entry_point(main, [*common, str(tmp_path / "b")]) == 0
    assert "4 images written" in capsys.readouterr().out


def test_corrupt_image_ends_in_one_line(flags, tmp_path, capsys):
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    for name in ("a", "b"):
        Image.fromarray(blocky_image(1, 40, 60)).save(data / "images" / f"{name}.jpg")
    (data / "tags.csv").write_text("file,tags,split\na.jpg,cat,train\nb.jpg,dog,train\n")
    path = data / "images" / "b.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    common = ["--data", str(data), *flags[2:]]
    capsys.readouterr()
    assert entry_point(main, [*common, str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {path}: image cannot be read")
    assert read_manifest(tmp_path / "out", "train") is None
    assert not list(tmp_path.rglob("*.tmp"))


def test_full_disk_ends_in_one_line_and_the_same_command_resumes(
    flags, small_disk, tmp_path, capsys
):
    out = small_disk(64) / "out"
    flags = ["--proposals", "selective_search", *flags]
    capsys.readouterr()
    assert entry_point(main, [*flags, str(out)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: disk full while writing {out}/")
    assert not list(out.rglob("*.tmp")) and read_manifest(out, "train") is None
    subprocess.run(["mount", "-o", "remount,size=4m", str(out.parent)], check=True)
    assert entry_point(main, [*flags, str(out)]) == 0
    assert verify_split(out, "train", progress=False) == IMAGES
