"""Faster R-CNN with a feature pyramid and RoI drop."""

from weaksam_jax.detectors.faster_rcnn.config import FasterRcnnConfig
from weaksam_jax.detectors.faster_rcnn.detector import FasterRcnn

__all__ = ["FasterRcnn", "FasterRcnnConfig"]
