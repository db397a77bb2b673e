"""Metrics. The only consumer of truth besides the report."""

from weaksam_jax.evaluate.coco import coco_ap
from weaksam_jax.evaluate.comp4 import comp4_names, write_comp4
from weaksam_jax.evaluate.localisation import corloc
from weaksam_jax.evaluate.masks import mask_quality, mask_recall, only_masked, voc_mask_ap
from weaksam_jax.evaluate.recall import pgt_quality, proposal_recall
from weaksam_jax.evaluate.voc import voc_ap

__all__ = [
    "coco_ap",
    "comp4_names",
    "corloc",
    "mask_quality",
    "mask_recall",
    "only_masked",
    "pgt_quality",
    "proposal_recall",
    "voc_ap",
    "voc_mask_ap",
    "write_comp4",
]
