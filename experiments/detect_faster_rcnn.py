"""The Faster R-CNN side of `experiments.detect`: a stored detector on a split, image by image."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from weaksam_jax.data.records import TagSplit
from weaksam_jax.detectors.faster_rcnn.config import RetrainSettings
from weaksam_jax.engine.journal import Journal
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays

# Images that are detected between two entries of the journal.
PART = 1000
UNUSED = -1  # category of the detector's classes that the data does not have


def read_detector(
    path: str | Path, settings: RetrainSettings, split: TagSplit
) -> tuple[dict, RetrainSettings, TagSplit]:
    """(parameters, `settings` as the file states them, `split` with the classes of the file).

    Classes that the data does not have get the category `UNUSED`. A file that does not name its
    classes must have as many as the data, in its order. Raises `BadInput` with the path when
    classes, names or shapes do not fit.
    """
    from weaksam_jax.detectors.faster_rcnn.network import as_trained, build_model, detector_params

    arrays, metadata = read_arrays(path)
    settings = as_trained(settings, metadata)
    shown = with_classes(split, stated_classes(path, arrays, metadata), path)
    model = build_model(settings, len(shown.classes))
    return detector_params(model, settings.views[0][0], arrays, path), settings, shown


def stated_classes(
    path: str | Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]
) -> Sequence[str] | int:
    """Names of the detector's classes, or their number where the file does not name them."""
    if "box_head/cls/bias" not in arrays:
        hint = (
            "give the retrained detector of a run, or what bridge.convert makes of a Faster R-CNN"
        )
        raise BadInput(path, "is no Faster R-CNN", hint)
    stated = json.loads(metadata.get("classes", "0"))
    return stated or arrays["box_head/cls/bias"].size - 1


def with_classes(split: TagSplit, stated: Sequence[str] | int, path: str | Path) -> TagSplit:
    """`split` with the detector's classes in the detector's order; see `read_detector`."""
    if isinstance(stated, int):
        if stated != len(split.classes):
            problem = f"has {stated} classes, {split.dataset} has {len(split.classes)}"
            raise BadInput(path, problem, "give data of the classes that it was trained on")
        return split
    ids = dict(zip(split.classes, split.category_ids, strict=True))
    missing = [name for name in split.classes if name not in stated]
    if missing:
        problem = f"does not know {missing[0]}, a class of {split.dataset}"
        raise BadInput(path, problem, "give data of the classes that it was trained on")
    categories = tuple(ids.get(name, UNUSED) for name in stated)
    return replace(split, classes=tuple(stated), category_ids=categories)


def detect_faster_rcnn(
    params: dict,
    shown: TagSplit,
    settings: RetrainSettings,
    journal: Journal,
    clues_root: Path | None = None,
) -> list[dict]:
    """COCO results of every image of `shown` (of `read_detector`), with the test-time views.

    journal: images that it holds are not detected again; they are added `PART` at a time. Results
    of a class that the data does not have are left out, after they took their place among an
    image's `max_detections`. clues_root: stored clues, for settings with `tag_power`.
    """
    from weaksam_jax.detectors.faster_rcnn.detect import detect_retrain

    todo = [one for one in shown.records if one.image_id not in journal.done]
    for start in range(0, len(todo), PART):
        part = replace(shown, records=tuple(todo[start : start + PART]))
        logits = tag_logits(clues_root, part) if settings.tag_power else None
        found = {record.image_id: [] for record in part.records}
        for one in detect_retrain(params, part, settings, tag_logits=logits):
            if one["category_id"] != UNUSED:
                found[one["image_id"]].append(one)
        journal.add(found)
    return [one for record in shown.records for one in journal.done[record.image_id]]


def tag_logits(clues_root: Path | None, split: TagSplit) -> np.ndarray:
    """What stored clues say of every image: float32 `[images, C]`."""
    from experiments.pipeline.clues import stored_logits

    if clues_root is None:
        hint = "give the clues of the run, or --settings.tag-power 0"
        raise BadInput("--clues", "are missing, with which tag_power weighs the scores", hint)
    if UNUSED in split.category_ids:
        problem = f"have no logits of all {len(split.classes)} classes of the detector"
        raise BadInput(clues_root, problem, "set --settings.tag-power 0")
    return stored_logits(clues_root, split)
