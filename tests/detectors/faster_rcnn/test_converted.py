"""Published detectors through `bridge.convert` and `load_detector`: what their files state, and the
library's own detections of the same image."""

import json

import jax
import numpy as np
import pytest
import torch
from configs import vary
from plain_detectron2 import PlainDetector, msra_pixels, random_tensors
from small_torchvision import small_faster_rcnn
from torchvision.models.detection.image_list import ImageList

from bridge.weights.kinds import convert
from weaksam_jax.data.pixel_statistics import IMAGENET_MEAN_255, IMAGENET_STD_255
from weaksam_jax.data.scales import padded_sizes
from weaksam_jax.detectors import load_detector, read_weights
from weaksam_jax.detectors.faster_rcnn import FasterRcnn
from weaksam_jax.detectors.faster_rcnn.config import ModelConfig

WIDTH, CHANNELS, CLASSES, HIDDEN = 4, 8, 3, 24
SIZES = (32, 64, 128, 256, 512)
NAMES = ("bird", "cat", "dog")
PADDED, SIZE = (128, 192), (120, 160)
PRE_NMS, POST_NMS, DETECTIONS = 100, 200, 30
LIBRARY = {
    "torchvision": {"backbone": "resnet50", "aligned": False, "round_anchors": True},
    "detectron2": {"backbone": "resnet50_msra", "aligned": True, "round_anchors": False},
}


def image():
    """One photograph of noise, uint8 `[1, H, W, 3]`, zero-padded."""
    shown = np.zeros((1, *PADDED, 3), np.uint8)
    rng = np.random.default_rng(0)
    shown[0, : SIZE[0], : SIZE[1]] = rng.integers(0, 256, (*SIZE, 3))
    return shown


@pytest.fixture(scope="module")
def torchvisions():
    model = small_faster_rcnn(
        WIDTH, CHANNELS, CLASSES, tuple((size,) for size in SIZES), HIDDEN,
        rpn_pre_nms_top_n_test=PRE_NMS, rpn_post_nms_top_n_test=POST_NMS,
        box_detections_per_img=DETECTIONS,
    ).eval()  # fmt: skip
    with torch.no_grad():
        model.rpn.head.bbox_pred.weight *= 0.2
        model.rpn.head.cls_logits.weight *= 0.4
        model.roi_heads.box_predictor.cls_score.weight *= 0.1  # scores apart from 1
    return model


@pytest.fixture(scope="module")
def files(torchvisions, tmp_path_factory):
    """{library: converted file}."""
    folder, made = tmp_path_factory.mktemp("files"), {}
    torch.save(torchvisions.state_dict(), folder / "torchvision.pth")
    tensors = random_tensors(WIDTH, CHANNELS, CLASSES, HIDDEN)
    torch.save({"model": tensors, "iteration": 8999}, folder / "detectron2.pth")
    for library, options in (("torchvision", {"classes": NAMES}), ("detectron2", {})):
        made[library] = convert(
            f"faster_rcnn_{library}",
            folder / f"{library}.safetensors",
            folder / f"{library}.pth",
            **options,
        )
    return made


@pytest.mark.parametrize("library", LIBRARY)
def test_a_converted_file_states_the_published_detector(library, files):
    detector, _ = load_detector(files[library])
    assert isinstance(detector, FasterRcnn)
    assert detector.classes == {"torchvision": NAMES, "detectron2": CLASSES}[library]
    assert detector.config.model == ModelConfig(
        **LIBRARY[library],
        backbone_width=WIDTH,
        strides=(4, 8, 16, 32, 64),
        anchor_sizes=tuple((float(size),) for size in SIZES),
        anchor_ratios=(0.5, 1.0, 2.0),
        channels=CHANNELS,
        extra_levels=1,
        fc_width=HIDDEN,
        canonical_size=224.0,
        canonical_level=2,
    )
    test = detector.config.test
    assert test.tta_scales == (padded_sizes(800, 1344, 32),) and not test.tta_flip
    assert (test.pre_nms, test.post_nms, test.max_detections) == (1000, 1000, 100)
    assert (test.score_threshold, test.nms) == (0.05, 0.5)
    metadata = read_weights(files[library]).metadata
    assert metadata["detector"] == "faster_rcnn"
    assert set(json.loads(metadata["config"])) == {"model", "test"}


def torchvision_found(model):
    shown = image()[0, : SIZE[0], : SIZE[1]]
    pixels = (shown - np.float32(IMAGENET_MEAN_255)) / np.float32(IMAGENET_STD_255)
    padded = in_padding(torch.tensor(pixels).permute(2, 0, 1)[None])
    features = model.backbone(padded)
    boxes, _ = model.rpn(ImageList(padded, [SIZE]), features)
    (found,), _ = model.roi_heads(features, boxes, [SIZE])
    return found["scores"].numpy(), found["boxes"].numpy(), found["labels"].numpy() - 1


def detectron2_found():
    plain = PlainDetector(random_tensors(WIDTH, CHANNELS, CLASSES, HIDDEN), SIZES)
    padded = in_padding(msra_pixels(image()[0, : SIZE[0], : SIZE[1]]))
    return [
        np.asarray(x) for x in plain.detect(padded, SIZE, PRE_NMS, POST_NMS, 0.05, 0.5, DETECTIONS)
    ]


def in_padding(pixels):
    missing = (0, PADDED[1] - SIZE[1], 0, PADDED[0] - SIZE[0])
    return torch.nn.functional.pad(pixels, missing)


@pytest.mark.parametrize("library", LIBRARY)
def test_a_converted_file_detects_as_its_library(library, files, torchvisions):
    detector, params = load_detector(files[library])
    # With more proposals of noise, rounding would decide.
    test = {"pre_nms": PRE_NMS, "post_nms": POST_NMS, "max_detections": DETECTIONS}
    detector = FasterRcnn(vary(detector.config, test=test), detector.classes)
    found = jax.jit(detector.predict)(params, {"image": image(), "size": np.array([SIZE])})
    with torch.no_grad():
        theirs = torchvision_found(torchvisions) if library == "torchvision" else None
        scores, boxes, labels = theirs or detectron2_found()
    count = int(found.valid.sum())
    assert found.masks is None and count == len(scores) == DETECTIONS
    np.testing.assert_allclose(found.scores[0, :count], scores, atol=1e-4)
    own = np.column_stack([found.labels[0], found.boxes[0]])[:count]
    # Scores that are equal but for rounding may change places.
    apart = np.abs(own[:, None] - np.column_stack([labels, boxes])).max(-1)
    assert apart.min(0).max() < 0.05 and sorted(apart.argmin(0)) == list(range(count))
    np.testing.assert_allclose(scores, found.scores[0][apart.argmin(0)], atol=1e-4)
