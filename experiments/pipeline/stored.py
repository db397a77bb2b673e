"""A detector in a file, on any data set: its classes, its config, and detections that resume."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from experiments.pipeline import detectors
from experiments.pipeline.detectors import Config, MilConfig, MilInputs
from weaksam_jax.data.records import TagSplit
from weaksam_jax.data.store import read_manifest
from weaksam_jax.engine.journal import Journal
from weaksam_jax.errors import BadInput
from weaksam_jax.files import file_fingerprint, fingerprint
from weaksam_jax.settings import to_plain

# Images that are detected between two entries of the journal.
PART = 1000
UNUSED = -1  # category of the detector's classes that the data does not have


@dataclass(frozen=True)
class StoredDetector:
    """A detector in a file and what it reads beside images.

    weights: the file. config: how it was trained. proposals, backbone: of a MIL detector; clues:
    stored maps, where the config asks for them.
    """

    weights: Path
    config: Config
    proposals: Path | None = None
    clues: Path | None = None
    backbone: Path | None = None

    def job_key(self, split: TagSplit) -> str:
        """A hash of everything that decides the detections."""
        files = [path and file_fingerprint(path) for path in (self.weights, self.backbone)]
        stores = [path and str(path.resolve()) for path in (self.proposals, self.clues)]
        manifest = self.proposals and read_manifest(self.proposals, split.split)
        images = [[one.image_id, one.file_name, one.width, one.height] for one in split.records]
        key = [files, stores, manifest, images, split.category_ids, to_plain(self.config)]
        return fingerprint(key)


def as_file_states(detector: StoredDetector) -> StoredDetector:
    """With the config that its file states, where it states one. `BadInput` when the file, or what
    was given beside it, is not for such a detector."""
    if isinstance(detector.config, MilConfig):
        if detector.proposals is None:
            problem = "is missing, which a MIL detector needs"
            raise BadInput("--proposals", problem, "name a store, see --help")
        return detector
    for name, given in (("proposals", detector.proposals), ("frozen-backbone", detector.backbone)):
        if given is not None:
            raise BadInput(f"--{name}", "is not for a Faster R-CNN", "leave it out")
    return replace(detector, config=detectors.as_stated(detector.weights, detector.config))


def find(detector: StoredDetector, split: TagSplit, journal_path: Path) -> list[dict]:
    """COCO results of every image of the split (its tags are not read); see `as_file_states`.

    What was found before a stop is taken from the file at `journal_path`. Raises `BadInput` with
    the file when classes, names or shapes do not fit.
    """
    if isinstance(detector.config, MilConfig):
        return _find_by_mil(detector, split, journal_path)
    return _find_by_retrainer(detector, split, journal_path)


def _find_by_mil(detector: StoredDetector, split: TagSplit, journal_path: Path) -> list[dict]:
    from weaksam_jax.engine.checkpoint import load_params

    params = load_params(detector.weights)
    backbone = None if detector.backbone is None else load_params(detector.backbone)
    inputs = MilInputs(detector.proposals, detector.clues, backbone)
    journal = Journal(journal_path, detector.job_key(split))
    place = detector.config, journal_path.parent, journal, detector.weights
    return detectors.detect_mil(params, split, inputs, *place)


def _find_by_retrainer(detector: StoredDetector, split: TagSplit, journal_path: Path) -> list[dict]:
    """Results of a class that the data does not have are left out, after they took their place
    among an image's `max_detections`."""
    shown = _with_classes(split, detectors.classes_of(detector.weights), detector.weights)
    params = detectors.load_retrainer(detector.weights, detector.config, len(shown.classes))
    journal = Journal(journal_path, detector.job_key(shown))
    todo = [one for one in shown.records if one.image_id not in journal.done]
    for start in range(0, len(todo), PART):
        part = replace(shown, records=tuple(todo[start : start + PART]))
        journal.add(_find_part(params, part, detector))
    return [one for record in shown.records for one in journal.done[record.image_id]]


def _find_part(params: dict, part: TagSplit, detector: StoredDetector) -> dict[int, list[dict]]:
    """The results of some images, by image id."""
    weighed = detectors.tag_power_of(detector.config)
    logits = _tag_logits(detector.clues, part) if weighed else None
    found: dict[int, list[dict]] = {record.image_id: [] for record in part.records}
    for one in detectors.detect_retrainer(params, part, detector.config, logits):
        if one["category_id"] != UNUSED:
            found[one["image_id"]].append(one)
    return found


def _with_classes(split: TagSplit, stated: Sequence[str] | int, path: Path) -> TagSplit:
    """`split` with the detector's classes in the detector's order.

    Classes that the data does not have get the category `UNUSED`. A file that does not name its
    classes must have as many as the data, in its order.
    """
    hint = "give data of the classes that it was trained on"
    if isinstance(stated, int):
        if stated != len(split.classes):
            problem = f"has {stated} classes, {split.dataset} has {len(split.classes)}"
            raise BadInput(path, problem, hint)
        return split
    ids = dict(zip(split.classes, split.category_ids, strict=True))
    missing = [name for name in split.classes if name not in stated]
    if missing:
        problem = f"does not know {missing[0]}, a class of {split.dataset}"
        raise BadInput(path, problem, hint)
    categories = tuple(ids.get(name, UNUSED) for name in stated)
    return replace(split, classes=tuple(stated), category_ids=categories)


def _tag_logits(clues: Path | None, split: TagSplit) -> np.ndarray:
    """What stored clues say of every image: float32 `[images, C]`."""
    from experiments.pipeline.clues import stored_logits

    if clues is None:
        hint = "give the clues of the run, or --tag-power 0"
        raise BadInput("--clues", "are missing, with which tag_power weighs the scores", hint)
    if UNUSED in split.category_ids:
        problem = f"have no logits of all {len(split.classes)} classes of the detector"
        raise BadInput(clues, problem, "set --tag-power 0")
    return stored_logits(clues, split)
