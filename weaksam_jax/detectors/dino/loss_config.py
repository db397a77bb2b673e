"""Settings of DINO's losses and of query drop."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from weaksam_jax.ranges import Amount, Positive, Settings, Share, StepsOrNone, between

Percentile = Annotated[float, between(0, 100)]


@dataclass(frozen=True)
class QueryDropConfig(Settings):
    """Query drop (equations 3-4, appendix C). Defaults: the paper, where it says something."""

    percentile: Percentile = 90.0
    """Queries of unweighted classification loss above this percentile are dropped; 100: none."""
    start: StepsOrNone = 0
    """The step from which queries are dropped."""
    background: bool = False
    """Queries without an object are ranked and dropped, too (Table 10)."""
    encoder: bool = True
    """The encoder's queries, too, ranked on their own (the official code's plumbing)."""
    denoising: bool = False
    """The denoising queries, too, ranked on their own."""
    scope: Literal["global", "device"] = "global"
    """Ranked over the images of all devices, or of each one (of each of its micro-batches)."""


@dataclass(frozen=True)
class LossConfig(Settings):
    """Weights of losses and matching. Defaults: DINO's, which mmdetection has."""

    cls: Amount = 1.0
    """Weight of the focal loss."""
    l1: Amount = 5.0
    """Weight of L1, on shares of the image."""
    giou: Amount = 2.0
    """Weight of 1 - GIoU."""
    cost_cls: Amount = 2.0
    """Weight of the focal loss's difference in matching."""
    cost_l1: Amount = 5.0
    """Weight of L1 in matching."""
    cost_giou: Amount = 2.0
    """Weight of -GIoU in matching."""
    alpha: Share = 0.25
    """The focal loss's weight of a class that is there; 1 - alpha: of one that is not."""
    gamma: Positive = 2.0
    """The focal loss's exponent."""
    drop: QueryDropConfig | None = field(default_factory=QueryDropConfig)
    """null switches query drop off."""
