"""What a main job does with the folder it is given: nothing of the user's is touched, and what has
changed since is noticed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from folders import coco_json, write_coco, write_csv, write_image
from PIL import Image
from test_bad_input import fault_of
from tiny_pipeline import write_run

from experiments.custom import main
from weaksam_jax.cli import entry_point
from weaksam_jax.files import read_json, write_json
from weaksam_jax.locks import locked

ROOT = Path(__file__).parents[2]
SMALL = ["--preset", "mini", "--weaktr.batch-size", "2"]
ROWS = ["a.jpg,dog,train", "b.jpg,cat,train", "c.jpg,dog,test"]


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_csv(tmp_path / "photos", ROWS)


def call(data, out, *more: str, stages: str = "data") -> int:
    argv = ["--data", str(data), "--out", str(out), *SMALL, "--stages", stages, *more]
    return entry_point(main, argv)


def tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_in_the_data_set_is_refused_and_touches_nothing(photos, capsys):
    write_json(photos / "clues" / "mine.json", "precious")
    before = tree(photos)
    places = (photos, photos / "images", photos / "images" / "run", photos.parent)
    for out in (*places, Path(os.path.relpath(photos))):
        for seed in ("0", "1"):
            assert call(photos, out, "--seed", seed, stages="data,clues") == 2
            assert fault_of(capsys.readouterr().err).startswith("error: --out: ")
    assert tree(photos) == before


def test_a_folder_with_the_name_of_a_stage_is_left_alone(photos, tmp_path, capsys):
    (tmp_path / "run" / "clues").mkdir(parents=True)
    (tmp_path / "run" / "clues" / "mine.txt").write_text("precious")
    assert call(photos, tmp_path / "run") == 2
    line = fault_of(capsys.readouterr().err)
    assert line.startswith(f"error: {tmp_path}/run/clues: was not made by a run; give another")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["clues"]


def test_settings_that_lie_there_are_not_overwritten(photos, tmp_path, capsys):
    run = write_run(tmp_path / "run", photos)
    before = tree(run)
    assert call(photos, run) == 2
    assert "settings.json: was there before" in fault_of(capsys.readouterr().err)
    assert tree(run) == before


def test_a_store_in_the_run_itself_is_no_store_made_elsewhere(photos, tmp_path, capsys):
    run = tmp_path / "run"
    assert call(photos, run) == 0
    for split in ("train", "test"):
        write_json(run / "proposals" / split / "manifest.json", {"images": []})
    assert call(photos, run, "--proposals", str(run / "proposals")) == 2
    assert "--proposals: " in fault_of(capsys.readouterr().err)
    assert (run / "proposals" / "train" / "manifest.json").exists()


def test_two_processes_in_one_folder_are_told(photos, tmp_path):
    command = [sys.executable, "-m", "experiments.custom", "--data", str(photos), "--out"]
    command += [str(tmp_path / "run"), *SMALL, "--stages", "data"]
    with locked(tmp_path / "run", "run"):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        told = f"error: {tmp_path}/run: is in use by process {os.getpid()} on "
        assert done.stderr.startswith(told) and done.stderr.count("\n") == 1
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_image_of_other_pixels_and_as_many_bytes_is_noticed(tmp_path, capsys):
    photos = write_csv(tmp_path / "photos", [row.replace("jpg", "bmp") for row in ROWS])
    path, run = photos / "images" / "a.bmp", tmp_path / "run"
    assert call(photos, run) == 0 and call(photos, run) == 0
    assert "data: done before, skipped" in capsys.readouterr().err
    size, times = path.stat().st_size, path.stat()
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == size
    assert call(photos, run) == 0
    assert "data: running" in capsys.readouterr().err


def test_truth_that_is_corrected_or_broken_is_noticed(tmp_path, capsys):
    data, run = write_coco(tmp_path / "coco"), tmp_path / "run"
    test = coco_json()
    shutil.copy(data / "annotations" / "instances_train2017.json", tmp_path / "keep.json")
    for image in test["images"]:
        image["file_name"] = f"val_{image['file_name']}"
        write_image(data / "images" / image["file_name"])
    write_json(data / "annotations" / "instances_val2017.json", test)
    assert call(data, run) == 0
    capsys.readouterr()
    annotations = json.loads((tmp_path / "keep.json").read_text())
    annotations["annotations"][0]["bbox"] = [3, 2, 6, 4]
    write_json(data / "annotations" / "instances_train2017.json", annotations)
    assert call(data, run) == 0
    said = capsys.readouterr().err
    assert "data: done before, measured again" in said and "running" not in said
    annotations["annotations"][0]["bbox"] = [500, 500, 30, 30]
    write_json(data / "annotations" / "instances_train2017.json", annotations)
    assert call(data, run) == 2
    assert "lies outside the image" in fault_of(capsys.readouterr().err)
    assert "dataset" not in read_json(run / "metrics.json")


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        ("/proc/run", "cannot be made here"),
        ("/dev/null", "File exists"),
        ("/dev/null/run", "Not a directory"),
        ("a" * 300, "File name too long"),
        ("link/run", "levels of symbolic links"),
    ],
)
def test_places_where_no_folder_can_be(photos, tmp_path, monkeypatch, capsys, out, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("link")
    assert call(photos, out) == 2
    assert problem in fault_of(capsys.readouterr().err)


@pytest.mark.parametrize("flag", ["--config", "--retrain.optim.init"])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_pipes_and_devices_are_no_files(photos, tmp_path, capsys, flag, kind):
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "pipe" if kind == "pipe" else Path(kind)
    assert call(photos, tmp_path / "run", flag, str(path), stages="data,retrain") == 2
    assert "is a pipe or device, not a file" in fault_of(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_limit_of_the_size_of_files(photos, tmp_path):
    command = f"ulimit -f 0; exec {sys.executable} -m bridge.export --preset mini --data {photos} "
    command += f"--split train --proposals selective_search --out {tmp_path / 'out'}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    line = fault_of(done.stderr)
    assert line.startswith("error: file size limit reached while writing") and "ulimit" in line
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
