"""A finished run, opened to look at new photos."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.pipeline.photos import Photo
from experiments.pipeline.run import open_run
from weaksam_jax.data.detections import category_ids, to_coco
from weaksam_jax.data.masks import encode_mask
from weaksam_jax.data.records import TagSplit
from weaksam_jax.photos import PhotoDetections, PhotoDetector, of_run
from weaksam_jax.report.draw import draw_detections, save_png


@dataclass(frozen=True)
class RunPredictor:
    """detector: the run's, on photos. photos: an empty split of the run's classes and ids."""

    detector: PhotoDetector
    photos: TagSplit

    def results(self, photos: Sequence[Photo], out: Path) -> Iterator[tuple[Photo, list[dict]]]:
        """COCO results of each photo, in order; its picture is written on the way. A few photos are
        in memory at a time."""
        paths = (one.record.path for one in photos)
        for photo, found in zip(photos, self.detector.many(paths), strict=True):
            rows = self._coco(photo, found)
            save_png(out / photo.picture, draw_detections(found.image, rows, self.photos))
            yield photo, rows

    def _coco(self, photo: Photo, found: PhotoDetections) -> list[dict]:
        rows = to_coco(
            photo.record, self.photos, found.boxes, scores=found.scores, labels=found.labels
        )
        if found.packed is None:
            return rows
        pairs, width = zip(rows, found.packed, strict=True), found.image.shape[1]
        masks = ((row, np.unpackbits(packed, axis=-1, count=width)) for row, packed in pairs)
        return [{**row, "segmentation": encode_mask(mask)} for row, mask in masks]


def open_predictor(
    root: Path,
    threshold: float,
    masks: bool,
    *,
    sam: str | None = None,
    clues: Path | None = None,
    detector: str | None = None,
) -> RunPredictor:
    """A retrained detector of a run; `BadInput` when the run has none yet.

    sam, clues: in place of the run's own networks; detector: which one (`weaksam_jax.load`).
    """
    from bridge import plugins

    run = open_run(root)
    networks = {"masks": plugins.masks, "tags": plugins.tags}
    given = {"sam": sam, "clues": clues, "detector": detector}
    seen = of_run(run.folder, threshold, networks.__getitem__, masks=masks, **given)
    categories = category_ids(run.folder.pseudo_boxes(), seen.classes)
    return RunPredictor(
        seen, TagSplit("photos", "predict", seen.classes, category_ids=categories, records=())
    )
