"""DINO (Zhang et al. 2023) with query drop."""

from weaksam_jax.detectors.dino.config import DinoConfig
from weaksam_jax.detectors.dino.detector import Dino

__all__ = ["Dino", "DinoConfig"]
