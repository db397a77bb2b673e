"""Detection on a split: views mapped back to the image, merged by class-wise NMS."""

import numpy as np
import pytest
from small_faster_rcnn import COLOURS, colour_box, write_rectangles

from weaksam_jax.boxes import iou
from weaksam_jax.data.views import ImageViews
from weaksam_jax.engine.predict import (
    Detections,
    classwise_nms,
    detect_split,
    tag_factors,
    union_of_views,
)
from weaksam_jax.errors import BadInput


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory):
    return write_rectangles(tmp_path_factory.mktemp("rectangles"))


def test_every_view_is_mapped_back_to_the_image(rectangles):
    """A stand-in detector reads the boxes off the pixels that it is shown."""
    shapes = set()

    def predict(batch):
        images = batch["image"]
        shapes.add(images.shape)
        boxes = np.zeros((len(images), 3, 4), np.float32)
        for i, image in enumerate(images):
            boxes[i, :2] = [colour_box(image, colour) for colour in COLOURS]
        scores = np.tile(np.float32([0.9, 0.8, 0.7]), (len(images), 1))
        labels = np.tile(np.int32([0, 1, 0]), (len(images), 1))
        valid = np.tile([True, True, False], (len(images), 1))
        return Detections(boxes, scores, labels, valid)

    split, pgt = rectangles
    scales = (((96, 128), (128, 96)), ((64, 64), (64, 64)))
    views = ImageViews(split, scales, tta_flip=True, batch_size=4)
    predictor = union_of_views(predict, iou_threshold=0.5, max_detections=100)
    results = detect_split(predictor, views, progress=False)
    assert shapes == {(4, 96, 128, 3), (4, 128, 96, 3), (4, 64, 64, 3)}
    assert len(results) == 12  # four views of each, merged by NMS
    for annotation in pgt["annotations"]:
        (one,) = (
            r for r in results if all(r[k] == annotation[k] for k in ("image_id", "category_id"))
        )
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


def test_tag_factors_are_probabilities_to_a_power():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    expected = (1 / (1 + np.exp(-logits))) ** 0.5
    np.testing.assert_allclose(tag_factors(0.5, logits), expected, rtol=1e-5)
    assert tag_factors(0.0, None) is None
    with pytest.raises(BadInput, match="has no tag logits"):
        tag_factors(0.5, None)
