"""The paper's retrained detectors as settings: Faster R-CNN R50-FPN on VOC07, VOC12 and COCO14.

Values are those of the released configurations (30-retraining-and-wsis.md, sections 1.1, 1.2 and
6); RoI drop is the paper's, with the release's step to begin at (the paper names none). What
differs, because canvases are few and their sides multiples of 32:

- training: an image's short side is drawn between 78 and 100 % of one of four sizes instead of from
  a list of sizes 32 pixels apart (499 to 1216 for 480 to 1216, at a mean of 817 for 848);
- test sizes 688, 1000 and 1800 are 704, 1024 and 1792, longest sides 2000 and 1333 are 1984 and
  1344, and a view is resized from the photograph and not from the photograph resized to 688;
- images are shrunk by area averaging (OpenCV) for PIL's bilinear filter; objects whose side is
  below 4 pixels on the canvas are left out.

A device that cannot hold its share of the 16 images takes it in turns (`accumulate`; `dtype`
bfloat16 halves the activations).
"""

from dataclasses import replace

from weaksam_jax.data.pseudo_boxes import Augmentation
from weaksam_jax.data.scales import Scale, canvases_of
from weaksam_jax.detectors.faster_rcnn.config import RetrainSettings
from weaksam_jax.detectors.faster_rcnn.loss import DropSettings

STRIDE = 32  # of the last level that the backbone gives
SMALLEST = 0.78  # of a canvas's short side: 640 -> 499, and each larger canvas to the one before


def _scales(max_side: int, *short_sides: int) -> tuple[Scale, ...]:
    return tuple(canvases_of(side, max_side, STRIDE, aspects=(3 / 2,)) for side in short_sides)


def _r50_fpn() -> RetrainSettings:
    """Detectron2's R50-FPN from MSRA's weights, 16 images a step."""
    return RetrainSettings(
        backbone="resnet50_msra",
        frozen=("stem", "res2"),
        strides=(4, 8, 16, 32, 64),
        anchor_sizes=((32,), (64,), (128,), (256,), (512,)),
        channels=256,
        extra_levels=1,
        fc_width=1024,
        canonical_size=224.0,
        canonical_level=2,
        optimizer="sgd",
        learning_rate=0.02,
        weight_decay=1e-4,
        batch=16,
        augmentation=Augmentation(scale=(SMALLEST, 1.0)),
        checkpoint_every=500,
        test_batch=4,
        test_pre_nms=1000,
        test_post_nms=1000,
        score_threshold=0.05,
        nms=0.5,
    )


def voc07() -> RetrainSettings:
    """VOC07 trainval: 29 epochs; 12 test views."""
    return replace(
        _r50_fpn(),
        scales=_scales(1984, 640, 832, 1024, 1216),
        drop=DropSettings(start=2000),
        warmup=30,
        milestones=(6000, 8000),
        steps=9000,
        views=_scales(1984, 480, 576, 704, 864, 1024, 1792),
    )


def voc12() -> RetrainSettings:
    """VOC12 trainval: 22 epochs. The release trains it without RoI drop; here it is on."""
    return replace(
        voc07(),
        learning_rate=0.015,
        warmup=60,
        milestones=(10_000, 14_000),
        steps=16_000,
        views=_scales(1984, 480, 576, 704, 864, 1024, 1216),
    )


def coco14() -> RetrainSettings:
    """COCO14 train: 16 epochs; 24 test sizes, each plain and mirrored."""
    return replace(
        _r50_fpn(),
        scales=_scales(1344, 800),
        augmentation=Augmentation(scale=(0.8, 1.0)),
        drop=DropSettings(start=10_000),
        warmup=1000,
        milestones=(55_000, 75_000),
        steps=85_000,
        views=_scales(4000, *range(480, 1217, 32)),
    )
