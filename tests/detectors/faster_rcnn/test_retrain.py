"""Retraining: samples that follow the pixels, training that resumes, detections in place."""

import json
from dataclasses import replace

import cv2
import jax
import numpy as np
import pytest

from weaksam_jax.boxes import iou
from weaksam_jax.data.pseudo_boxes import Augmentation, PseudoSamples, augment, recolour
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.detectors.faster_rcnn import train as training
from weaksam_jax.detectors.faster_rcnn.config import RetrainSettings, light
from weaksam_jax.detectors.faster_rcnn.detect import detect_retrain
from weaksam_jax.detectors.faster_rcnn.loss import DetectionSettings, DropSettings
from weaksam_jax.detectors.faster_rcnn.network import build_model, init_model
from weaksam_jax.engine.mesh import data_mesh
from weaksam_jax.engine.predict import classwise_nms, detect_split
from weaksam_jax.errors import BadInput

pytestmark = pytest.mark.usefixtures("compile_once")

COLOURS = ((255, 0, 0), (0, 255, 0))  # class 0, class 1
SIZES = ((80, 60), (60, 80), (64, 64), (80, 60), (60, 80), (64, 64))  # width, height


def colour_box(image, colour):
    """The box of the pixels of about that colour, from the pixels alone."""
    near = np.abs(image.astype(int) - colour).max(-1) < 100
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Six images, each with one red and one green rectangle; the last one has no pseudo box."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    records, boxes = [], {}
    for image_id, (width, height) in enumerate(SIZES, 1):
        image = np.full((height, width, 3), 90, np.uint8)
        for label, colour in enumerate(COLOURS):
            x, y = rng.integers(2, 8) + label * width // 2, rng.integers(4, height // 2)
            w, h = rng.integers(12, 20), rng.integers(16, 24)
            image[y : y + h, x : x + w] = colour
            boxes.setdefault(image_id, []).append([int(x), int(y), int(w), int(h)])
        path = folder / f"{image_id}.png"
        cv2.imwrite(str(path), image[..., ::-1])
        records.append(TagRecord(image_id, path.name, path, width, height, (0, 1)))
    split = TagSplit("rectangles", "train", ("red", "green"), (7, 9), tuple(records))
    annotations = [
        {"id": 10 * i + c, "image_id": i, "category_id": split.category_ids[c], "bbox": box}
        for i, pair in boxes.items()
        for c, box in enumerate(pair)
        if i < 6
    ]
    return split, {"images": [], "categories": [], "annotations": annotations}


def small(**changes):
    settings = RetrainSettings(
        channels=8,
        fc_width=16,
        detection=DetectionSettings(rpn_batch=16, pre_nms=20, post_nms=10, roi_batch=16),
        drop=DropSettings(tau_cls=100.0, tau_reg=0.0, start=2),
        warmup=2,
        steps=4,
        batch=2,
        scales=(((64, 64),),),
        checkpoint_every=2,
        views=(((64, 64),),),
        test_batch=2,
        test_pre_nms=20,
        test_post_nms=10,
        score_threshold=0.0,
        optimizer="adamw",
        learning_rate=1e-3,
    )
    return replace(settings, **changes)


def test_boxes_follow_the_pixels_through_augmentation(split):
    tags, pgt = split
    settings = Augmentation(scale=(0.6, 1.8), flip=0.5, colour=0.0)
    samples = PseudoSamples(pgt, tags, (((64, 96),),), settings)
    assert len(samples) == 5 and samples.max_boxes == 8
    checked = cropped = 0
    for index in range(5):
        for seed in range(12):
            sample = samples(index, (64, 96), np.random.default_rng(seed))
            assert sample["image"].shape == (64, 96, 3) and sample["image"].dtype == np.uint8
            height, width = sample["size"].astype(int)
            assert not sample["image"][height:].any() and not sample["image"][:, width:].any()
            count = int(sample["valid"].sum())
            cropped += count < 2
            for box, label in zip(sample["boxes"][:count], sample["labels"], strict=False):
                seen = colour_box(sample["image"], COLOURS[label])
                np.testing.assert_allclose(box, seen, atol=1.6)
                checked += 1
            assert not sample["boxes"][count:].any()
    assert checked > 60 and cropped > 0


def test_a_crop_always_keeps_an_object():
    image = np.full((50, 50, 3), 90, np.uint8)
    box = np.array([[40, 40, 48, 48]], np.float32)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        _, _, inside, _ = augment(image, box, (50, 50), rng, Augmentation(scale=(1.5, 2.0)))
        assert inside.all()


def test_recolour_keeps_grey_grey_and_the_range():
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    np.testing.assert_array_equal(recolour(image, np.random.default_rng(1), 0.0), image)
    grey = np.repeat(image[..., :1], 3, axis=2)
    changed = recolour(grey, np.random.default_rng(1), 0.4)
    assert changed.dtype == np.uint8 and (changed != grey).any()
    assert np.ptp(changed.astype(int), axis=2).max() <= 1


def test_pseudo_boxes_that_do_not_fit_the_split_are_bad_input(split):
    tags, pgt = split
    with pytest.raises(BadInput, match="no box"):
        PseudoSamples({"annotations": []}, tags, (((64, 64),),), Augmentation())
    for wrong in ({"image_id": 99}, {"category_id": 1}):
        annotations = [{**pgt["annotations"][0], **wrong}]
        with pytest.raises(BadInput, match="not of rectangles"):
            PseudoSamples({"annotations": annotations}, tags, (((64, 64),),), Augmentation())


def read_log(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in lines]


@pytest.fixture(scope="module")
def trained(split, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        train = training.train
        patch.setattr(training, "train", lambda *a, **k: train(*a, **k, log_every=1))
        params = training.train_retrain(
            split[1], split[0], small(), folder / "retrain", data_mesh(jax.devices()[:1]), 3
        )
    return params, folder


def test_dropping_begins_at_its_step(trained):
    log = read_log(trained[1])
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert [line["dropped_foreground"] for line in log] == [0, 0, 1, 1]
    assert all(line["dropped_background"] == 0 for line in log)
    assert log[1]["box"] > 0 and log[2]["box"] == log[3]["box"] == 0
    assert all(line["foreground_rois"] > 0 for line in log)


def test_an_interrupted_run_ends_in_the_same_bits(split, trained, tmp_path, monkeypatch):
    train, mesh = training.train, data_mesh(jax.devices()[:1])

    def run(steps):
        def stop(state, step, batches, total, *rest, **options):
            return train(state, step, batches, min(steps, total), *rest, **options, log_every=1)

        monkeypatch.setattr(training, "train", stop)
        return training.train_retrain(split[1], split[0], small(), tmp_path / "retrain", mesh, 3)

    run(3)
    again = run(4)
    jax.tree.map(np.testing.assert_array_equal, again, trained[0])
    assert read_log(tmp_path) == read_log(trained[1])


def test_warm_start_and_frozen_modules(split, tmp_path):
    settings = small(frozen=("stem",), steps=1, warmup=100, drop=None)
    model = build_model(settings, 2)
    stem = init_model(model, (64, 64), jax.random.key(7), None)["backbone"]["stem"]
    given = jax.device_get(stem)
    mesh = data_mesh(jax.devices()[:1])
    params = training.train_retrain(*split[::-1], settings, tmp_path / "a", mesh, 0, given)
    jax.tree.map(np.testing.assert_array_equal, params["backbone"]["stem"], given)
    fresh = init_model(model, (64, 64), jax.random.split(jax.random.key(0))[0], given)
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), params["fpn"], jax.device_get(fresh["fpn"])
    )
    assert all(jax.tree.leaves(moved))
    assert "dropped_foreground" not in read_log(tmp_path)[0]
    bad = {name: {k: v[..., :1] for k, v in layer.items()} for name, layer in given.items()}
    with pytest.raises(BadInput, match="another shape"):
        init_model(model, (64, 64), jax.random.key(0), bad)
    with pytest.raises(BadInput, match="missing"):
        model = build_model(light(), 2)
        init_model(model, (64, 64), jax.random.key(0), None)


def test_detections_are_coco_results_in_the_image(split, trained):
    found = detect_retrain(trained[0], split[0], small(), progress=False)
    records = {record.image_id: record for record in split[0].records}
    assert {one["image_id"] for one in found} == set(records)
    for one in found:
        record = records[one["image_id"]]
        x, y, w, h = one["bbox"]
        assert x >= 0 and y >= 0 and x + w <= record.width + 0.02 and y + h <= record.height + 0.02
        assert one["category_id"] in (7, 9) and 0 < one["score"] < 1
        assert one["file_name"] == record.file_name
    tagless = replace(split[0], records=tuple(replace(r, tags=()) for r in split[0].records))
    assert detect_retrain(trained[0], tagless, small(), progress=False) == found


def test_tag_probabilities_multiply_the_scores(split, trained):
    logits = np.random.default_rng(0).normal(size=(len(split[0].records), 2)).astype(np.float32)
    plain = detect_retrain(trained[0], split[0], small(), progress=False)
    settings = replace(small(), tag_power=0.5)
    with pytest.raises(BadInput, match="tag logits"):
        detect_retrain(trained[0], split[0], settings, progress=False)
    found = detect_retrain(trained[0], split[0], settings, False, logits)
    rows = {record.image_id: row for row, record in enumerate(split[0].records)}

    def place(one):
        return one["image_id"], one["category_id"], *one["bbox"]

    scores = {place(one): one["score"] for one in plain}
    assert {place(one) for one in found} == set(scores)
    for one in found:
        logit = logits[rows[one["image_id"]], split[0].category_ids.index(one["category_id"])]
        expected = scores[place(one)] / np.sqrt(1 + np.exp(-logit))
        assert one["score"] == pytest.approx(expected, abs=2e-6)
    by_image = [[one["score"] for one in found if one["image_id"] == i] for i in rows]
    assert all(scores == sorted(scores, reverse=True) for scores in by_image)


def test_every_view_is_mapped_back_to_the_image(split):
    """A stand-in detector reads the boxes off the pixels of the canvas it is shown."""
    shapes = set()

    def detector(images, sizes):
        shapes.add(images.shape)
        boxes = np.zeros((len(images), 3, 4), np.float32)
        for i, image in enumerate(images):
            boxes[i, :2] = [colour_box(image, colour) for colour in COLOURS]
        scores = np.tile(np.float32([0.9, 0.8, 0.7]), (len(images), 1))
        labels = np.tile(np.int32([0, 1, 0]), (len(images), 1))
        return boxes, scores, labels, np.tile([True, True, False], (len(images), 1))

    tags, pgt = split
    views = (((96, 128), (128, 96)), ((64, 64),))
    results = detect_split(detector, tags, views, True, 4, 0.5, 100, progress=False)
    assert shapes == {(4, 96, 128, 3), (4, 128, 96, 3), (4, 64, 64, 3)}
    assert len(results) == 12  # four views of each, merged by NMS
    for annotation in pgt["annotations"]:
        (one,) = (
            r for r in results
            if all(r[k] == annotation[k] for k in ("image_id", "category_id"))
        )  # fmt: skip
        np.testing.assert_allclose(one["bbox"], annotation["bbox"], atol=1.5)


def test_classwise_nms_equals_a_loop():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 30, (80, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 30, (80, 2))], 1)
    scores, labels = rng.random(80).round(1), rng.integers(0, 3, 80)
    expected = []
    for i in sorted(range(80), key=lambda i: (-scores[i], i)):
        same = [j for j in expected if labels[j] == labels[i]]
        if all(iou(boxes[i : i + 1], boxes[j : j + 1])[0, 0] <= 0.5 for j in same):
            expected.append(i)
    np.testing.assert_array_equal(classwise_nms(boxes, scores, labels, 0.5), expected)
    assert classwise_nms(boxes[:0], scores[:0], labels[:0], 0.5).shape == (0,)
