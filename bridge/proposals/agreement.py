"""How far two sets of proposals of one image agree, as of a SAM encoder in bfloat16 and float32."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from weaksam_jax.boxes import iou
from weaksam_jax.data.store import Proposals


@dataclass(frozen=True)
class Agreement:
    """boxes: of the reference. matched: how many of them have a partner. pixels: the greatest
    difference of a coordinate between partners (0 without any)."""

    boxes: int
    matched: int
    pixels: float

    @property
    def share(self) -> float:
        """Matched boxes among those of the reference (1 when there are none)."""
        return self.matched / self.boxes if self.boxes else 1.0


def box_agreement(reference: Proposals, other: Proposals, least_iou: float = 0.9) -> Agreement:
    """Partners are boxes of one source with IoU >= `least_iou`, one to one, of the most IoU."""
    matched, pixels = 0, 0.0
    for source in np.unique(reference.source):
        ours = reference.boxes[reference.source == source]
        theirs = other.boxes[other.source == source]
        overlap = iou(ours, theirs)
        overlap[overlap < least_iou] = 0
        row, column = linear_sum_assignment(overlap, maximize=True)
        partners = overlap[row, column] > 0
        shift = np.abs(ours[row[partners]] - theirs[column[partners]])
        matched += int(partners.sum())
        pixels = max(pixels, float(shift.max(initial=0)))
    return Agreement(len(reference), matched, pixels)
