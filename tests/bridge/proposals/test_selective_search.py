"""Selective search: boxes of OpenCV, in an order that does not change from run to run."""

import cv2
import numpy as np
import pytest
from small_sam import blocky_image
from stores import stored_proposals

from bridge.proposals import selective_search as module
from bridge.proposals.selective_search import SelectiveSearchConfig, rank, selective_search
from weaksam_jax.boxes import area, iou
from weaksam_jax.data.store import SOURCES, write_proposals
from weaksam_jax.errors import BadInput

ALL = SelectiveSearchConfig(max_boxes=None, min_side=0, nms=None)


@pytest.fixture(scope="module")
def image():
    return blocky_image(5, 90, 120)


def test_boxes_are_opencvs(image):
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    search.switchToSelectiveSearchFast()
    expected = {(x, y, x + w, y + h) for x, y, w, h in search.process().tolist()}
    found = selective_search(image, ALL)
    assert len(found) > 10 and {tuple(box) for box in found.boxes.tolist()} == expected


def test_runs_and_threads_agree(image):
    first = selective_search(image)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    second = selective_search(image)
    cv2.setNumThreads(threads)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    other = selective_search(image, SelectiveSearchConfig(seed=1))
    assert not np.array_equal(first.boxes, other.boxes)


def test_settings_bound_the_boxes(image, tmp_path):
    limits = SelectiveSearchConfig(max_boxes=12, min_side=15, nms=0.8)
    found = selective_search(image, limits, image_id=4)
    assert len(found) == 12
    assert (found.boxes[:, 2:] - found.boxes[:, :2]).min() >= 15
    assert (iou(found.boxes, found.boxes) - np.eye(12)).max() <= 0.8
    assert (np.diff(found.predicted_iou) < 0).all() and found.predicted_iou.min() > 0
    write_proposals(tmp_path, "test", found, {})
    again = stored_proposals(tmp_path, "test", 4)
    assert again.masks is None and (again.source == SOURCES.index("selective_search")).all()


def test_smaller_image_gives_boxes_in_pixels_of_the_original():
    flat = np.zeros((200, 300, 3), np.uint8)
    flat[60:140, 100:220] = (200, 40, 40)
    found = selective_search(flat, SelectiveSearchConfig(long_side=150))
    assert found.boxes.min() >= 0 and (found.boxes.max(0) <= [300, 200, 300, 200]).all()
    target = np.asarray([[100, 60, 220, 140]], np.float32)
    assert iou(found.boxes, target).max() > 0.9


def test_rank_ignores_the_order_of_its_input_and_prefers_large_boxes():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 50, (300, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 60, (300, 2))], 1).astype(np.float32)
    ordered = boxes[rank(boxes, 3)]
    shuffled = rng.permutation(boxes)
    np.testing.assert_array_equal(shuffled[rank(shuffled, 3)], ordered)
    assert area(ordered[:50]).mean() > 1.5 * area(ordered[-50:]).mean()


def test_opencv_without_contrib_is_bad_input(monkeypatch, image):
    monkeypatch.delattr(module.cv2, "ximgproc")
    with pytest.raises(BadInput, match="opencv-contrib-python-headless"):
        selective_search(image)


def test_plain_images_do_not_fail():
    for size in ((40, 50), (1, 1)):
        found = selective_search(np.zeros((*size, 3), np.uint8), ALL)
        assert found.boxes.shape[1] == 4 and len(found.points) == 0
