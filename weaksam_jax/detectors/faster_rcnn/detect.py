"""Detections of the retrained detector on a split."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from weaksam_jax.data.records import TagSplit
from weaksam_jax.detectors.faster_rcnn.config import RetrainSettings
from weaksam_jax.detectors.faster_rcnn.model import detect
from weaksam_jax.detectors.faster_rcnn.network import build_model, normalise
from weaksam_jax.engine.predict import detect_split
from weaksam_jax.errors import BadInput


def detect_retrain(
    params: Mapping[str, Any],
    split: TagSplit,
    settings: RetrainSettings,
    progress: bool = True,
    tag_logits: np.ndarray | None = None,
) -> list[dict]:
    """COCO results of every image of `split` (its tags are not read), with the test-time views.

    tag_logits: what a clue network predicts of each image, float `[images, C]`; settings with a
    `tag_power` need them.
    """
    factors = None
    if settings.tag_power:
        if tag_logits is None:
            hint = "give tag_logits, or set tag_power to 0"
            raise BadInput("the retrained detector", "has no tag logits", hint)
        factors = np.asarray(jax.nn.sigmoid(tag_logits) ** settings.tag_power)
    run = _program(settings, len(split.classes))
    params = jax.device_put(params)
    return detect_split(
        lambda images, sizes: jax.device_get(run(params, images, sizes)),
        split,
        settings.views,
        settings.mirrored,
        settings.test_batch,
        settings.nms,
        settings.max_detections,
        progress,
        factors,
    )


@functools.lru_cache(maxsize=1)
def _program(settings: RetrainSettings, classes: int):
    """The compiled detector (params, images, sizes) -> Detections; kept for the next call."""
    model = build_model(settings, classes)

    @jax.jit
    def run(params, images, sizes):
        return detect(
            model,
            params,
            normalise(images, sizes, settings.backbone),
            sizes,
            settings.test_pre_nms,
            settings.test_post_nms,
            settings.score_threshold,
            settings.nms,
            settings.max_detections,
        )

    return run
