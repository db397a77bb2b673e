"""IoUs of just the threshold: boxes with decimals, judged as pycocotools judges the same files."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from experiments.evaluate import results_recall
from weaksam_jax.data.datasets import open_truth
from weaksam_jax.evaluate import coco_ap, corloc, pgt_quality, proposal_recall, voc_ap
from weaksam_jax.evaluate.overlap import xywh_iou
from weaksam_jax.report.artefacts import Found
from weaksam_jax.report.choose import judge

# Truth, and a detection that covers exactly half of it.
HALVES = [
    ([10.1, 10.1, 20, 20], [10.1, 10.1, 20, 10]),
    ([0.3, 0.3, 30.3, 20.2], [0.3, 0.3, 30.3, 10.1]),
    ([7.7, 3.3, 10.6, 10.4], [7.7, 3.3, 10.6, 5.2]),
    ([0.1, 0.7, 0.2, 60.6], [0.1, 0.7, 0.2, 30.3]),
]
sides = st.integers(1, 200).map(lambda tenths: tenths / 10)
shares = st.sampled_from([0.25, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0])
rows = st.tuples(sides, sides, sides, sides, shares, st.integers(0, 3))


def data_set(root: Path, boxes: list, images: int = 4) -> Path:
    """Boxes go round the images, 64 x 64, in turn."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    for image in range(1, images + 1):
        Image.new("RGB", (64, 64)).save(root / "images" / f"{image}.png")
    annotations = [
        {"id": i + 1, "image_id": i % images + 1, "category_id": 1, "bbox": box, "iscrowd": 0}
        | {"area": box[2] * box[3]}
        for i, box in enumerate(boxes)
    ]
    photos = [{"id": i, "file_name": f"{i}.png"} for i in range(1, images + 1)]
    content = {"images": photos, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "dog"}]
    path = root / "annotations" / "instances_train.json"
    path.write_text(json.dumps(content))
    return path


def official(path: Path, found: list) -> list[float]:
    """AP, AP50, AP75 of pycocotools' own script, percent."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.params.maxDets = [1, 10, 100]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * value for value in evaluation.stats[:3]]


def results(boxes: list, images: int = 4) -> list[dict]:
    return [
        {"image_id": i % images + 1, "category_id": 1, "bbox": box, "score": 1 / (i + 2)}
        for i, box in enumerate(boxes)
    ]


@pytest.mark.parametrize(("true", "half"), HALVES)
def test_exactly_half_counts_in_every_figure(tmp_path, true, half):
    path = data_set(tmp_path, [true], images=1)
    truth, found = open_truth(tmp_path, "train"), results([half], images=1)
    assert xywh_iou(np.asarray([half]), np.asarray([true])).item() == pytest.approx(0.5)
    assert official(path, found)[1] == pytest.approx(100)
    assert coco_ap(found, truth)["ap50"] == pytest.approx(100)
    assert voc_ap(found, truth, rule="12")["ap50"] == 100
    assert results_recall(found, truth, difficult=True)["recall"]["0.50"] == 1
    quality = pgt_quality({"annotations": found}, truth)
    assert (quality["precision50"], quality["recall50"]) == (1, 1)
    boxes = Found(np.asarray([half]), np.zeros(1, int), np.ones(1), (None,))
    assert judge(boxes, truth.records[0]).missed == 0
    more = xywh_iou(np.asarray([half]), np.asarray([true]))[0, 0] > 0.5
    assert corloc(found, truth)["corloc"] == 100 * more


@given(st.lists(rows, min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_ap_is_that_of_pycocotools(tmp_path_factory, drawn):
    boxes, found = [], []
    for x, y, width, height, share, side in drawn:
        boxes.append([x, y, width, height])
        cut = [width * share, height] if side % 2 else [width, round(height * share, 2)]
        found.append([x, y, *cut])
    root = tmp_path_factory.mktemp("drawn")
    path, found = data_set(root, boxes), results(found)
    ours = coco_ap(found, open_truth(root, "train"))
    assert [ours["ap"], ours["ap50"], ours["ap75"]] == pytest.approx(
        official(path, found), abs=1e-9
    )


def test_truth_keeps_what_the_file_says(tmp_path):
    written = [[10.1, 10.1, 20, 20], [0.1, 0.2, 0.7, 63.3]]
    data_set(tmp_path, written, images=1)
    record = open_truth(tmp_path, "train").records[0]
    assert record.xywh.tolist() == written
    assert record.boxes.dtype == np.float64
    assert record.boxes[1].tolist() == [0.1, 0.2, 0.1 + 0.7, 0.2 + 63.3]


def test_recall_of_corners_and_of_written_boxes(tmp_path):
    data_set(tmp_path, [[8, 8, 20, 20]], images=1)
    truth = open_truth(tmp_path, "train")
    corners, written = np.asarray([[8, 8, 28, 18]], np.float32), np.asarray([[8, 8, 20, 10]])
    assert proposal_recall([corners], truth)["0.50"] == 1
    assert proposal_recall([written], truth, form="xywh")["0.50"] == 1
    assert proposal_recall([written], truth)["0.50"] == 0


def test_overlap_is_symmetric_and_empty_boxes_have_none():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 50, (20, 4)), rng.uniform(0, 50, (30, 4))
    a[0, 2] = b[3, 3] = 0
    found = xywh_iou(a, b)
    assert (found == xywh_iou(b, a).T).all()
    assert not found[0].any() and not found[:, 3].any()
    low, high = np.maximum(a[:, None, :2], b[:, :2]), a[:, None, :2] + a[:, None, 2:]
    high = np.minimum(high, b[:, :2] + b[:, 2:])
    both = np.maximum(high - low, 0).prod(2)
    union = a[:, None, 2:].prod(2) + b[:, 2:].prod(1) - both
    np.testing.assert_allclose(found, both / np.maximum(union, 1e-9), rtol=1e-12)
    assert xywh_iou(a[:0], b).shape == (0, 30) and xywh_iou(a, b[:0]).shape == (20, 0)
