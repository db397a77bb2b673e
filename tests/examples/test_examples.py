"""The scripts of examples/: short, and each one runs and says what it promises."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from weaksam_jax.data.datasets import open_truth
from weaksam_jax.data.detections import annotation, annotation_file
from weaksam_jax.data.mini_set import write_mini

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


def run(name, *arguments):
    """What an example prints."""
    command = [sys.executable, ROOT / "examples" / name, *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        list(map(str, command)), env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(a tiny data set, a COCO file of the true boxes of its training images)."""
    folder = tmp_path_factory.mktemp("examples")
    data = write_mini(folder, 1, train_images=8, test_images=4, progress=False)
    truth = open_truth(data, "trainval")
    rows = [
        annotation(record.image_id, truth.category_ids[label], box)
        for record in truth.records
        for box, label in zip(record.boxes, record.labels, strict=True)
    ]
    (folder / "boxes.json").write_text(json.dumps(annotation_file(truth, rows)))
    return data, folder / "boxes.json"


@pytest.fixture(scope="module")
def retrained(data, tmp_path_factory):
    """What `retrain_on_coco.py` writes after three steps."""
    out = tmp_path_factory.mktemp("retrained")
    run("retrain_on_coco.py", *data, out, 3)
    return out


def test_there_is_one_for_each_thing_and_each_fits_a_screen():
    names = [script.stem for script in SCRIPTS]
    assert names == ["add_backbone", "evaluate", "predict", "retrain_on_coco", "training_loop"]
    for script in SCRIPTS:
        assert len(script.read_text().splitlines()) <= 40, script


def test_add_backbone():
    assert "'boxes': (1, 100, 4)" in run("add_backbone.py")


def test_training_loop(data):
    lines = run("training_loop.py", *data, 2).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1", "step 2"]


def test_retrain_then_evaluate(data, retrained):
    found = json.loads((retrained / "detections.json").read_text())
    assert found and (retrained / "params.safetensors").exists()
    printed = run("evaluate.py", data[0], retrained / "detections.json")
    assert [line.split()[0] for line in printed.splitlines()] == ["VOC07", "VOC12", "COCO"]


def test_predict(data, retrained):
    """Three steps find nothing surely: what it prints is what `weaksam_jax.load` finds."""
    import weaksam_jax

    photo = next((data[0] / "JPEGImages").iterdir())
    found = weaksam_jax.load(retrained / "params.safetensors", threshold=0.3)(photo)
    assert len(run("predict.py", retrained / "params.safetensors", photo).splitlines()) == len(
        found
    )
