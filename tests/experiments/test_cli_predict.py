"""`experiments.predict` on a run whose detector is untrained: files, names, streams, refusals."""

import json
import shutil

import jax
import numpy as np
import pytest
from configs import vary
from PIL import Image
from tiny_pipeline import write_run

from experiments import predict
from experiments.pipeline.config import mini
from experiments.pipeline.photos import find_photos
from experiments.pipeline.predictor import open_predictor
from weaksam_jax import photos as on_photos
from weaksam_jax.cli import entry_point
from weaksam_jax.detectors import save_detector
from weaksam_jax.detectors.faster_rcnn import FasterRcnn
from weaksam_jax.files import write_json
from weaksam_jax.run_folder import RunFolder

NAMES, IDS = ("cat", "dog"), (7, 3)
TINY = vary(
    mini().retrain,
    model={"channels": 8, "fc_width": 8},
    test={
        **{"tta_scales": (((64, 64),),), "tta_flip": False, "batch_size": 2},
        **{"pre_nms": 20, "post_nms": 10, "score_threshold": 0.0, "max_detections": 3},
    },
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with all that predict reads; not to be changed."""
    run = write_run(tmp_path_factory.mktemp("runs") / "run", "mini", retrain=TINY)
    folder, detector = RunFolder(run), FasterRcnn(TINY, NAMES)
    batch = {"image": np.zeros((1, 64, 64, 3), np.uint8)}
    save_detector(folder.weights("retrain"), detector, detector.init(jax.random.key(0), batch))
    categories = [{"id": i, "name": name} for i, name in zip(IDS, NAMES, strict=True)]
    write_json(folder.pseudo_boxes(), {"categories": categories})
    write_json(folder.mark("retrain"), {})
    return run


@pytest.fixture
def album(tmp_path):
    """Five photos, two of one name."""
    rng = np.random.default_rng(0)
    for name in ("a/beach.jpg", "b/beach.jpg", "b/dog.png", "b/owl.jpg", "b/sea.jpg"):
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 56, 3)).astype(np.uint8)).save(path)
    return tmp_path / "album"


def flags(run, out, *photos):
    return [
        "--run",
        str(run),
        "--out",
        str(out),
        "--threshold",
        "0",
        "--no-masks",
        *map(str, photos),
    ]


def test_results_and_pictures_of_a_folder_and_a_glob(finished, album, tmp_path, capsys):
    out = tmp_path / "out"
    assert entry_point(predict.main, flags(finished, out, album / "a", f"{album}/b/*e*.jpg")) == 0
    found = json.loads((out / "predictions.json").read_text())
    assert {one["file_name"] for one in found} == {"a/beach.jpg", "b/beach.jpg", "b/sea.jpg"}
    assert [one["image_id"] for one in found] == sorted(one["image_id"] for one in found)
    assert {one["category_id"] for one in found} <= set(IDS) and "segmentation" not in found[0]
    for one in found:
        x, y, width, height = one["bbox"]
        assert x >= 0 and y >= 0 and x + width <= 56.01 and y + height <= 40.01
    pictures = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert pictures == ["a/beach.png", "b/beach.png", "b/sea.png"]
    assert f"{len(found)} objects on 3 photos" in capsys.readouterr().out
    assert not list(out.rglob("*.tmp"))


def test_many_photos_are_what_each_is_alone(finished, album, tmp_path):
    both, alone = tmp_path / "both", tmp_path / "alone"
    predict.main(flags(finished, both, album / "b"))
    predict.main(flags(finished, alone, album / "b" / "sea.jpg"))
    (out, one) = (json.loads((o / "predictions.json").read_text()) for o in (both, alone))
    mine = [row for row in out if row["file_name"] == "sea.jpg"]
    assert [row["category_id"] for row in mine] == [row["category_id"] for row in one]
    for row, other in zip(mine, one, strict=True):
        assert row["score"] == pytest.approx(other["score"], abs=1e-5)
        np.testing.assert_allclose(row["bbox"], other["bbox"], atol=0.05)


def test_no_more_than_a_few_photos_are_in_memory(finished, album, tmp_path, monkeypatch):
    loaded, load = [], on_photos.load_image
    monkeypatch.setattr(on_photos, "load_image", lambda path: loaded.append(path) or load(path))
    predictor = open_predictor(finished, 0.0, masks=False)
    results = predictor.results(find_photos([album], tmp_path / "out"), tmp_path / "out")
    counts = []
    for _ in results:
        counts.append(len(loaded))
    assert counts == [2, 2, 4, 4, 5], "one batch at a time"


def test_a_stop_leaves_no_results(finished, album, tmp_path, monkeypatch):
    shown = []

    def stops(photos, out):
        if shown:
            raise KeyboardInterrupt
        shown.append(photos)

    monkeypatch.setattr("experiments.pipeline.predictor.save_png", stops)
    assert entry_point(predict.main, flags(finished, tmp_path / "out", album)) == 130
    assert not (tmp_path / "out" / "predictions.json").exists()
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.parametrize(
    "gone", ["settings.json", "retrain/params.safetensors", "pgt/pgt.json", "stages/retrain.json"]
)
def test_a_run_that_is_not_finished_is_refused(finished, album, tmp_path, capsys, gone):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / gone).unlink()
    assert entry_point(predict.main, flags(run, tmp_path / "out", album)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {run}") and gone in line
    assert not (tmp_path / "out").exists()


def test_what_is_no_photo_is_refused_before_anything_is_written(finished, album, tmp_path, capsys):
    (album / "b" / "torn.jpg").write_bytes(b"none")
    assert entry_point(predict.main, flags(finished, tmp_path / "out", album)) == 2
    assert f"{album}/b/torn.jpg: image cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
