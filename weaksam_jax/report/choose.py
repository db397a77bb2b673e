"""Which images the report shows, and which boxes of an image are right. Nothing is random."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from weaksam_jax.data.records import TagRecord, TruthRecord
from weaksam_jax.evaluate.overlap import xywh_iou
from weaksam_jax.evaluate.recall import greedy_matches
from weaksam_jax.report.artefacts import Found


@dataclass(frozen=True)
class Verdict:
    """Boxes against the truth of one image.

    right bool `[n]`: matched to an object of its class, or on a difficult one. found bool `[m]`:
    objects that are matched, and all difficult ones and crowds (they are not asked for). objects:
    how many are asked for.
    """

    right: np.ndarray
    found: np.ndarray
    objects: int

    @property
    def missed(self) -> int:
        return int((~self.found).sum())

    @property
    def wrong(self) -> int:
        return int((~self.right).sum())


def judge(found: Found, truth: TruthRecord, threshold: float = 0.5) -> Verdict:
    """Class by class, one box to one object, highest IoU first, IoU >= threshold."""
    ignored = truth.difficult | truth.crowd
    right, matched = np.zeros(len(found.xywh), bool), ignored.copy()
    for label in np.unique(found.labels):
        mine = np.flatnonzero(found.labels == label)
        theirs = np.flatnonzero((truth.labels == label) & ~ignored)
        spared = np.flatnonzero((truth.labels == label) & ignored)
        boxes = found.xywh[mine]
        right[mine] = (xywh_iou(boxes, truth.xywh[spared]) >= threshold).any(1)
        for row, column in greedy_matches(xywh_iou(boxes, truth.xywh[theirs]), threshold):
            right[mine[row]], matched[theirs[column]] = True, True
    return Verdict(right, matched, int((~ignored).sum()))


def showcase(records: Sequence[TagRecord], count: int) -> list[TagRecord]:
    """`count` records in which every class has its turn, in the split's order.

    Next comes always an image of the tag shown least so far, among those one with several tags
    before one with a single tag; ties go by a hash of the image id. Only tags are looked at, so the
    choice says nothing about how well the images turned out. With at least as many images as
    tagged classes every such class is shown.
    """
    order = sorted(records, key=lambda r: hashlib.sha256(str(r.image_id).encode()).digest())
    order = [record for record in order if record.tags] or order
    shown, chosen = Counter(), []
    while order and len(chosen) < count:
        best = min(order, key=lambda r: (min([shown[t] for t in r.tags] or [0]), len(r.tags) < 2))
        order.remove(best)
        chosen.append(best)
        shown.update(best.tags)
    place = {record.image_id: index for index, record in enumerate(records)}
    return sorted(chosen, key=lambda record: place[record.image_id])


def worst(
    records: Sequence[TagRecord], faults: Callable[[TagRecord], int], count: int
) -> list[TagRecord]:
    """The `count` records with most faults, most first (the split's order among equals)."""
    scored = [(faults(record), record) for record in records]
    scored = [pair for pair in scored if pair[0] > 0]
    return [record for _, record in sorted(scored, key=lambda pair: -pair[0])[:count]]
