"""A Faster R-CNN of the smallest size, and images of rectangles with pseudo boxes."""

import cv2
import numpy as np
from configs import vary

from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.detectors.faster_rcnn import FasterRcnn, FasterRcnnConfig
from weaksam_jax.detectors.faster_rcnn import config as parts
from weaksam_jax.engine.optimizer import OptimConfig

CLASSES = ("red", "green")
COLOURS = ((255, 0, 0), (0, 255, 0))  # of both classes
SIZES = ((80, 60), (60, 80), (64, 64), (80, 60), (60, 80), (64, 64))  # width, height

SMALL = FasterRcnnConfig(
    model=parts.ModelConfig(channels=8, fc_width=16),
    loss=parts.LossConfig(
        rpn_batch=16,
        pre_nms=20,
        post_nms=10,
        roi_batch=16,
        drop=parts.DropConfig(tau_cls=100.0, tau_reg=0.0, start=2),
    ),
    optim=OptimConfig(
        optimizer="adamw", lr=1e-3, warmup=2, steps=4, batch_size=2, checkpoint_every=2
    ),
    data=parts.DataConfig(scales=(((64, 64),),)),
    test=parts.TestConfig(
        tta_scales=(((64, 64),),), batch_size=2, pre_nms=20, post_nms=10, score_threshold=0.0
    ),
)


def small(**changes) -> FasterRcnn:
    """The detector of rectangles, with other values in parts of its config."""
    return FasterRcnn(vary(SMALL, **changes), CLASSES)


def colour_box(image, colour):
    """The box of the pixels of about that colour, from the pixels alone."""
    near = np.abs(image.astype(int) - colour).max(-1) < 100
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def write_rectangles(folder):
    """(split, pseudo boxes) of six images, each with one red and one green rectangle; the last one
    has no pseudo box."""
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
    split = TagSplit("rectangles", "train", CLASSES, (7, 9), tuple(records))
    annotations = [
        {"id": 10 * i + c, "image_id": i, "category_id": split.category_ids[c], "bbox": box}
        for i, pair in boxes.items()
        for c, box in enumerate(pair)
        if i < 6
    ]
    return split, {"images": [], "categories": [], "annotations": annotations}
