"""What a run made, read for the report. Every part may be missing: None then."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from weaksam_jax.boxes import from_xywh
from weaksam_jax.data.detections import DetectionTable, read_detections
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.store import Proposals, is_stored, read_clues, read_proposals
from weaksam_jax.errors import BadFile
from weaksam_jax.files import json_lines, read_json

MOST_STAGES = 50  # of a log; a run has ten
MOST_NUMBER = 1e100
KIND_NAMES = {"dino": "DINO", "faster_rcnn": "Faster R-CNN"}


@dataclass(frozen=True)
class RunFiles:
    """Where the parts of a run are. The report looks nowhere else; every part may be missing.

    root: the page names the others as seen from here. page: the report itself. clues, proposals:
    stores. mil, retrain: detections on the test split, COCO results, and by their stage those of
    further retrained detectors; pgt, top1, masks: COCO annotation files of the training split.
    """

    root: Path
    page: Path
    settings: Path
    metrics: Path
    log: Path
    clues: Path
    proposals: Path
    mil: Path
    pgt: Path
    top1: Path
    retrain: Path
    masks: Path
    further: Mapping[str, Path] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """That of a name of `parts`."""
        return self.further[name] if name in self.further else getattr(self, name)

    def shown(self, path: Path) -> str:
        """A path as the page names it."""
        inside = path.is_relative_to(self.root)
        return (path.relative_to(self.root) if inside else path).as_posix()


@dataclass(frozen=True)
class Part:
    """A COCO file of a run: the split whose images it speaks of, its stage, the words for it."""

    role: Literal["train", "test"]
    stage: str
    words: str


# By their names in `RunFiles` and `Artefacts.found`; `parts` has those of further detectors, too.
PARTS = {
    "mil": Part("test", "wsod", "detections of the MIL detector"),
    "pgt": Part("train", "pgt", "adaptive pseudo boxes"),
    "top1": Part("train", "pgt", "top-1 pseudo boxes"),
    "retrain": Part("test", "retrain", "detections of the retrained detector"),
    "masks": Part("train", "masks", "pseudo masks"),
}


def parts(files: RunFiles) -> dict[str, Part]:
    """The COCO files that a run may have."""
    further = {
        stage: Part("test", stage, f"detections of the retrained detector ({kind_of(stage)})")
        for stage in files.further
    }
    return {**PARTS, **further}


def kind_of(stage: str) -> str:
    """ "DINO" of "retrain_dino", as a figure calls it."""
    kind = stage.removeprefix("retrain_")
    return KIND_NAMES.get(kind, kind)


@dataclass(frozen=True)
class Found:
    """Boxes of one image, best first.

    xywh float64 `[n, 4]` x y width height in pixels, as in the file; labels int `[n]` class
    indices; scores `[n]` (1 where the file has none); masks: COCO RLE or None, one per box.
    """

    xywh: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: tuple[dict | None, ...]

    @property
    def boxes(self) -> np.ndarray:
        """float64 `[n, 4]`, x1 y1 x2 y2."""
        return from_xywh(self.xywh)

    def above(self, score: float) -> "Found":
        """Those with at least this score."""
        keep = self.scores >= score
        masks = tuple(mask for mask, kept in zip(self.masks, keep, strict=True) if kept)
        return Found(self.xywh[keep], self.labels[keep], self.scores[keep], masks=masks)


@dataclass(frozen=True)
class Artefacts:
    """What a run made.

    found: per name of `parts`, image id -> `Found` (every image of the split has one).
    """

    files: RunFiles
    train: TagSplit
    test: TagSplit | None
    metrics: dict
    settings: dict
    log: dict[str, list[dict]]
    found: Mapping[str, dict[int, Found] | None]

    def clues(self, record: TagRecord) -> dict[str, np.ndarray] | None:
        """coarse, fine `[c, h, w]`, class_ids, class_logits, points of a training image."""
        place, classes = (self.files.clues, self.train.split), len(self.train.classes)
        names = ("coarse", "fine", "class_logits", "points")
        if not is_stored(*place, record.image_id):
            return None
        return read_clues(*place, record, names=names, classes=classes)

    def proposals(self, record: TagRecord) -> Proposals | None:
        """The proposals of a training image."""
        place = self.files.proposals, self.train.split
        return read_proposals(*place, record) if is_stored(*place, record.image_id) else None

    @property
    def detections(self) -> dict[int, Found] | None:
        """Of the last detector of the pipeline on the test split: the first that is retrained."""
        return self.found["retrain"] or self.found["mil"]

    @property
    def retrained(self) -> list[str]:
        """Names of the retrained detectors in `found`."""
        return ["retrain", *self.files.further]


def read_artefacts(files: RunFiles, train: TagSplit, test: TagSplit | None) -> Artefacts:
    """Opens a run; raises `BadInput` only for a file that is there, but broken.

    Without `test` the files about test images count as missing.
    """
    splits = {"train": train, "test": test}
    settings, metrics = read_object(files.settings), read_figures(files.metrics)
    found = {name: _found(files.path(name), splits[p.role]) for name, p in parts(files).items()}
    return Artefacts(
        files, train, test, metrics=metrics, settings=settings, log=read_log(files.log), found=found
    )


def read_log(path: Path) -> dict[str, list[dict]]:
    """The lines of a run's `log.jsonl`, by stage, in order of steps; of each the finite numbers.

    Raises `BadFile` for a line that is none, but for the last, which a kill may have cut short.
    """
    stages = defaultdict(list)
    hint = "move the file away and run that stage again"
    lines = list(json_lines(path, "log line", hint)) if path.exists() else []
    for one in lines:
        line = one.value
        try:
            own = {"step": _step(line["step"]), **numbers(line)}
            stages[line["stage"] if isinstance(line["stage"], str) else ""].append(own)
        except (ValueError, KeyError, TypeError) as error:
            if one is lines[-1]:
                continue
            raise BadFile(path, f"line {one.number} is no log line", hint) from error
    found = [(name, sorted(own, key=lambda line: line["step"])) for name, own in stages.items()]
    return dict(found[:MOST_STAGES])


def _step(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise ValueError(value)
    return value


def read_object(path: Path) -> dict:
    """The JSON object in a file of a run; empty when there is none."""
    content = read_json(path) if path.exists() else {}
    if not isinstance(content, dict):
        raise BadFile(path, "is no JSON object", "run the main job again")
    return content


def read_figures(path: Path) -> dict:
    """metrics.json: nested objects of numbers, text and lists of these; the rest is left out, for
    a run may be a stranger's. (`experiments.compare` looks at what is left out.)"""
    return figures(read_object(path))


def figures(content: Mapping, depth: int = 6) -> dict:
    """What `read_figures` takes of an object of that depth."""
    kept = {}
    for name, value in content.items():
        if isinstance(value, dict) and depth:
            kept[name] = figures(value, depth - 1)
        elif _is_leaf(value) or (isinstance(value, list) and all(map(_is_leaf, value))):
            kept[name] = value
    return kept


def _is_leaf(value: Any) -> bool:
    return isinstance(value, str | bool | None) or is_number(value)


def is_number(value: Any) -> bool:
    """Whether it is a finite number; a boolean is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= MOST_NUMBER


def part(values: Mapping, *names: str) -> Mapping:
    """A nested object of figures; empty where there is none."""
    for name in names:
        values = values.get(name)
        if not isinstance(values, Mapping):
            return {}
    return values


def numbers(values: Mapping) -> dict[str, float]:
    """Those entries that are finite numbers."""
    return {name: value for name, value in values.items() if is_number(value)}


def _found(path: Path, split: TagSplit | None) -> dict[int, Found] | None:
    """COCO results or a COCO annotation file, by image; None when there is no such file."""
    if split is None or not path.exists():
        return None
    table = read_detections(path, split, masks="kept", scores=False)
    return dict(zip(table.images, map(partial(_one, table), table.of_images()), strict=True))


def _one(table: DetectionTable, rows: np.ndarray) -> Found:
    """Those of one image, best first."""
    rows = rows[np.argsort(-table.scores[rows], kind="stable")]
    masks = tuple(table.masks[row] for row in rows)
    return Found(table.xywh[rows], table.labels[rows], table.scores[rows], masks=masks)
