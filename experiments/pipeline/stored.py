"""A detector in a file, on any data set: detections that resume."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pipeline import detectors
from experiments.pipeline.detectors import MilInputs
from weaksam_jax.data.content import content_hash
from weaksam_jax.data.packs import INDEX
from weaksam_jax.data.records import TagSplit
from weaksam_jax.data.store import proposal_path, read_manifest
from weaksam_jax.detectors import Detector, load_detector
from weaksam_jax.engine.distributed import run_on_leader
from weaksam_jax.engine.predict import UNUSED, Views, detect_file, with_classes
from weaksam_jax.engine.step import Params
from weaksam_jax.errors import BadInput
from weaksam_jax.files import file_fingerprint, fingerprint
from weaksam_jax.settings import to_plain


@dataclass(frozen=True)
class StoredDetector:
    """A detector in a file and what it reads beside images.

    weights: the file. proposals: of a MIL detector; clues: stored maps and logits, where the config
    asks for them.
    """

    weights: Path
    detector: Detector
    params: Params
    proposals: Path | None = None
    clues: Path | None = None

    def job_key(self, split: TagSplit) -> str:
        """A hash of everything that decides the detections."""
        stores = [path and str(path.resolve()) for path in (self.proposals, self.clues)]
        held = [path and _store_key(path, split) for path in (self.proposals, self.clues)]
        images = [[one.image_id, content_hash(one.path)] for one in split.records]
        made_by = [file_fingerprint(self.weights), to_plain(self.detector.config)]
        return fingerprint([made_by, stores, held, images, split.category_ids])


def _store_key(root: Path, split: TagSplit) -> list:
    """What a store holds of a split: its manifest, and of each image's file (or the pack) the size
    and the time when it was changed."""
    paths = [proposal_path(root, split.split, one.image_id) for one in split.records]
    paths = [path for path in paths if path.exists()] or [root / split.split / INDEX]
    states = [path.stat() for path in paths if path.exists()]
    times = [[one.st_size, one.st_mtime_ns] for one in states]
    return [read_manifest(root, split.split), times]


def open_stored(
    weights: Path, test: Any, *, proposals: Path | None, clues: Path | None
) -> StoredDetector:
    """The detector of a file with the part `test` of a config. `BadInput` when the file is none, or
    when what is given beside it is not what it needs."""
    detector, params = load_detector(weights)
    if detector.on_proposals and proposals is None:
        problem = f"is missing, which the detector ({detector.kind}) needs"
        raise BadInput("--proposals", problem, "name a store, see --help")
    if not detector.on_proposals and proposals is not None:
        raise BadInput("--proposals", f"is not for {detector.kind}", "leave it out")
    detector = replace(detector, config=replace(detector.config, test=test))
    return StoredDetector(weights, detector, params, proposals=proposals, clues=clues)


def find(stored: StoredDetector, split: TagSplit, *, out: Path, journal: Path) -> int:
    """Writes COCO results of every image of the split (its tags are not read) to `out`; returns how
    many there are. Every process calls it and takes its share.

    Classes that the data do not have are left out, after they took their place among the most
    detections of an image. What was found before a stop is taken from the file `journal`.
    Raises `BadInput` with the detector's file when its classes do not fit.
    """
    shown = with_classes(split, stored.detector.classes, stored.weights)
    key = run_on_leader(lambda: stored.job_key(shown))
    views = _views(stored, shown, journal.parent)
    return detect_file(
        out, stored.detector.predictor(stored.params), views, journal=journal, key=key
    )


def _views(stored: StoredDetector, split: TagSplit, folder: Path) -> Views:
    """The images as the detector is shown them; folder: for maps of a frozen backbone."""
    detector = stored.detector
    if detector.on_proposals:
        inputs = MilInputs(stored.proposals, stored.clues)
        return detectors.mil_views(detector, stored.params, split, inputs=inputs, folder=folder)
    weighed = detector.config.test.tag_power
    return detectors.image_views(
        detector, split, _tag_logits(stored.clues, split) if weighed else None
    )


def _tag_logits(clues: Path | None, split: TagSplit) -> np.ndarray:
    """What stored clues say of every image: float32 `[images, C]`."""
    from experiments.pipeline.clues import stored_logits

    hint = "give the clues of the run, or --test.tag-power 0"
    if clues is None:
        raise BadInput("--clues", "are missing, with which tag_power weighs the scores", hint)
    if UNUSED in split.category_ids:
        problem = f"have no logits of all {len(split.classes)} classes of the detector"
        raise BadInput(clues, problem, "set --test.tag-power 0")
    return stored_logits(clues, split)
