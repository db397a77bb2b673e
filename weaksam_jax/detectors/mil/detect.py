"""Detections of the MIL detector on a split with proposals."""

from pathlib import Path

from weaksam_jax.data.records import TagSplit
from weaksam_jax.detectors.mil.detector import MilDetector
from weaksam_jax.detectors.mil.samples import MilViews, tta_samples
from weaksam_jax.detectors.mil.train import frozen_maps
from weaksam_jax.engine.distributed import run_leader_first
from weaksam_jax.engine.journal import Journal
from weaksam_jax.engine.predict import detect_split
from weaksam_jax.engine.step import Params


def detect_mil(
    detector: MilDetector,
    params: Params,
    split: TagSplit,
    *,
    proposals_root: str | Path,
    folder: str | Path,
    clues_root: str | Path | None = None,
    journal: Journal | None = None,
) -> list[dict]:
    """COCO results of every image of `split` (its tags are not read; stored clues may know them).

    Scores and boxes are averaged over all views (`MilDetector.score`), boxes in pixels of the
    original image and cut to it; scores times `clue_evidence` to the power of `test.clue_power`;
    then class-wise NMS and the best `max_detections` per image, best first (`every_class`: the best
    one of every class among them; the official code keeps ties with the last of them too). The rest
    as in `mil_views`.
    """
    place = {"proposals_root": proposals_root, "clues_root": clues_root, "folder": folder}
    views = mil_views(detector, params, split, **place)
    return detect_split(detector.predictor(params), views, journal=journal)


def mil_views(
    detector: MilDetector,
    params: Params,
    split: TagSplit,
    *,
    proposals_root: str | Path,
    folder: str | Path,
    clues_root: str | Path | None = None,
) -> MilViews:
    """The images of a split with their proposals, for `detect_split` and `detect_file`.

    folder: where maps of a frozen backbone are cached, by process 0 where there are several.
    """
    samples = tta_samples(split, proposals_root, detector.config, clues_root=clues_root)
    samples.features = run_leader_first(
        lambda: frozen_maps(detector, params, samples, folder=Path(folder))
    )
    return MilViews(samples)
