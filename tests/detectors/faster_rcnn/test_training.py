"""Training of Faster R-CNN: it drops, resumes, starts from weights; detections in place."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from small_faster_rcnn import small

from weaksam_jax.data.pseudo_boxes import PseudoSamples
from weaksam_jax.data.views import ImageViews
from weaksam_jax.detectors import (
    detect_split,
    load_detector,
    read_weights,
    save_detector,
    train_detector,
)
from weaksam_jax.detectors.mil import MilConfig, MilDetector
from weaksam_jax.engine import train as training
from weaksam_jax.engine.mesh import data_mesh


def read_log(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in lines]


def train(rectangles, detector, folder, *, seed=3, **options):
    """`train_detector` that logs every step."""
    split, pgt = rectangles
    data, loop = detector.config.data, training.train
    samples = PseudoSamples(pgt, split, data.scales, data.augment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", lambda *a, **k: loop(*a, **k, log_every=1))
        mesh = data_mesh(jax.devices()[:1])
        return train_detector(detector, samples, folder, mesh=mesh, seed=seed, **options)


@pytest.fixture(scope="module")
def trained(rectangles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return train(rectangles, small(), folder / "retrain"), folder


def test_dropping_begins_at_its_step(trained):
    log = read_log(trained[1])
    assert [(line["stage"], line["step"]) for line in log] == [("retrain", i) for i in range(1, 5)]
    assert [line["dropped_foreground"] for line in log] == [0, 0, 1, 1]
    assert all(line["dropped_background"] == 0 for line in log)
    assert log[1]["box"] > 0 and log[2]["box"] == log[3]["box"] == 0
    assert all(line["foreground_rois"] > 0 for line in log)
    for line in log:
        each = {name: [line[name]] for name in ("dropped_foreground", "dropped_background")}
        assert line["every_step"] == each


def test_an_interrupted_run_ends_in_the_same_bits(rectangles, trained, tmp_path):
    train(rectangles, small(), tmp_path / "retrain", until=3)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3]
    again = train(rectangles, small(), tmp_path / "retrain")
    jax.tree.map(np.testing.assert_array_equal, again, trained[0])
    assert read_log(tmp_path) == read_log(trained[1])


def test_frozen_parts_stay_as_the_weights_that_training_starts_from(rectangles, tmp_path):
    optim = {"frozen": ("stem",), "steps": 1, "warmup": 100}
    detector = small(optim=optim, loss={"drop": None})
    batch = {"image": np.zeros((1, 64, 64, 3), np.uint8)}
    stem = detector.init(jax.random.key(7), batch)["backbone"]["stem"]
    save_detector(tmp_path / "mil.safetensors", MilDetector(MilConfig(), 2), {"backbone": stem})
    weights = read_weights(tmp_path / "mil.safetensors")
    params = train(rectangles, detector, tmp_path / "a", seed=0, weights=weights)
    jax.tree.map(np.testing.assert_array_equal, params["backbone"]["stem"], jax.device_get(stem))
    fresh = detector.init(jax.random.split(jax.random.key(0))[0], batch, weights)
    for part in ("fpn", "rpn", "box_head"):
        before = jax.device_get(fresh[part])
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), params[part], before)
        assert all(jax.tree.leaves(moved))
    assert "dropped_foreground" not in read_log(tmp_path)[0]


def detections(rectangles, detector, params, **options):
    test = detector.config.test
    how = {"tta_flip": test.tta_flip, "batch_size": test.batch_size}
    views = ImageViews(rectangles[0], test.tta_scales, **how, **options)
    return detect_split(detector.predictor(params), views, progress=False)


def test_detections_are_coco_results_in_the_image(rectangles, trained, tmp_path):
    split, _ = rectangles
    found = detections(rectangles, small(), trained[0])
    records = {record.image_id: record for record in split.records}
    assert {one["image_id"] for one in found} == set(records)
    for one in found:
        record = records[one["image_id"]]
        x, y, w, h = one["bbox"]
        assert x >= 0 and y >= 0 and x + w <= record.width + 0.02 and y + h <= record.height + 0.02
        assert one["category_id"] in (7, 9) and 0 < one["score"] < 1
        assert one["file_name"] == record.file_name
    tagless = replace(split, records=tuple(replace(r, tags=()) for r in split.records))
    assert detections((tagless, None), small(), trained[0]) == found
    save_detector(tmp_path / "d.safetensors", small(), trained[0])
    detector, params = load_detector(tmp_path / "d.safetensors")
    assert detector == small() and detections(rectangles, detector, params) == found


def test_class_factors_multiply_the_scores(rectangles, trained):
    """As retraining has them: the clue network's probabilities of the tags, to a power."""
    split, _ = rectangles
    logits = np.random.default_rng(0).normal(size=(len(split.records), 2)).astype(np.float32)
    factors = (1 / (1 + np.exp(-logits))) ** 0.5
    plain = detections(rectangles, small(), trained[0])
    found = detections(rectangles, small(), trained[0], class_factors=factors)
    rows = {record.image_id: row for row, record in enumerate(split.records)}

    def place(one):
        return one["image_id"], one["category_id"], *one["bbox"]

    scores = {place(one): one["score"] for one in plain}
    assert {place(one) for one in found} == set(scores)
    for one in found:
        logit = logits[rows[one["image_id"]], split.category_ids.index(one["category_id"])]
        expected = scores[place(one)] / np.sqrt(1 + np.exp(-logit))
        assert one["score"] == pytest.approx(expected, rel=1e-5)
    by_image = [[one["score"] for one in found if one["image_id"] == i] for i in rows]
    assert all(scores == sorted(scores, reverse=True) for scores in by_image)
