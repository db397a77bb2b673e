"""The MIL detector: weakly supervised detection from tags and proposals (WSDDN, OICR, MIST)."""

from weaksam_jax.detectors.mil.config import MilConfig
from weaksam_jax.detectors.mil.detect import detect_mil, mil_views
from weaksam_jax.detectors.mil.detector import MilDetector
from weaksam_jax.detectors.mil.mining import mine_mist, mine_oicr
from weaksam_jax.detectors.mil.samples import MilSamples, MilViews
from weaksam_jax.detectors.mil.train import train_mil

__all__ = [
    "MilConfig",
    "MilDetector",
    "MilSamples",
    "MilViews",
    "detect_mil",
    "mil_views",
    "mine_mist",
    "mine_oicr",
    "train_mil",
]
