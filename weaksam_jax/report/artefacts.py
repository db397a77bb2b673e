"""What a run folder holds, read for the report. Every part may be missing: None then."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weaksam_jax.boxes import from_xywh
from weaksam_jax.data.records import TagSplit
from weaksam_jax.data.store import Proposals, is_stored, read_proposals, read_stored
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_json

# COCO files of a run: name in the report, place, and the split whose images it speaks of.
FILES = {
    "mil": ("wsod/detections_test.json", "test"),
    "pgt": ("pgt/pgt.json", "train"),
    "top1": ("pgt/top1.json", "train"),
    "retrain": ("retrain/detections_test.json", "test"),
    "masks": ("masks/pseudo.json", "train"),
}


@dataclass(frozen=True)
class Found:
    """Boxes of one image, best first.

    boxes `[n, 4]` x1 y1 x2 y2 in pixels; labels int `[n]` class indices; scores `[n]` (1 where the
    file has none); masks: COCO RLE or None, one a box.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: tuple[dict | None, ...]

    def above(self, score: float) -> "Found":
        """Those with at least this score."""
        keep = self.scores >= score
        masks = tuple(mask for mask, kept in zip(self.masks, keep, strict=True) if kept)
        return Found(self.boxes[keep], self.labels[keep], self.scores[keep], masks)


@dataclass(frozen=True)
class Artefacts:
    """A run folder. found: per name of `FILES`, image id -> `Found` (every image of the split)."""

    run: Path
    train: TagSplit
    test: TagSplit | None
    metrics: dict
    settings: dict
    log: dict[str, list[dict]]
    found: Mapping[str, dict[int, Found] | None]
    proposal_root: Path

    def clues(self, image_id: int) -> dict[str, np.ndarray] | None:
        """coarse, fine `[c, h, w]`, class_ids, class_logits, points of a training image."""
        place = self.run / "clues", self.train.split, image_id
        return read_stored(*place)[0] if is_stored(*place) else None

    def proposals(self, image_id: int) -> Proposals | None:
        """The proposals of a training image."""
        place = self.proposal_root, self.train.split, image_id
        return read_proposals(*place) if is_stored(*place) else None

    @property
    def detections(self) -> dict[int, Found] | None:
        """Of the last detector of the road on the test split."""
        return self.found["retrain"] or self.found["mil"]


def read_artefacts(run: Path, train: TagSplit, test: TagSplit | None) -> Artefacts:
    """Opens a run folder; raises `BadInput` only for a file that is there, but broken.

    Without `test` the files about test images count as missing.
    """
    splits = {"train": train, "test": test}
    settings = _json(run / "settings.json") or {}
    source = settings.get("proposals", "sam")
    own = source in ("sam", "selective_search")
    return Artefacts(
        run,
        train,
        test,
        _json(run / "metrics.json") or {},
        settings,
        read_log(run),
        {name: _found(run / place, splits[role]) for name, (place, role) in FILES.items()},
        run / "proposals" if own else Path(source),
    )


def read_log(run: Path) -> dict[str, list[dict]]:
    """The lines of the run's `log.jsonl`, by stage, in order of steps."""
    stages = defaultdict(list)
    path = run / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, text in enumerate(lines):
        try:
            line = json.loads(text)
            stages[str(line["stage"])].append({"step": int(line["step"]), **line})
        except (ValueError, KeyError, TypeError) as error:
            if number + 1 == len(lines):  # a line cut short by a kill
                continue
            hint = "delete the file and run that stage again"
            raise BadInput(path, f"line {number + 1} is no log line", hint) from error
    return {name: sorted(lines, key=lambda line: line["step"]) for name, lines in stages.items()}


def _json(path: Path):
    return read_json(path) if path.exists() else None


def _found(path: Path, split: TagSplit | None) -> dict[int, Found] | None:
    """COCO results or a COCO annotation file, by image; None when there is no such file."""
    content = None if split is None else _json(path)
    if content is None:
        return None
    rows = content["annotations"] if isinstance(content, dict) else content
    class_of = {category: label for label, category in enumerate(split.category_ids)}
    by_image = {record.image_id: [] for record in split.records}
    for row in rows:
        if row["image_id"] not in by_image or row["category_id"] not in class_of:
            what = f"image {row['image_id']}, category {row['category_id']}"
            problem = f"holds {what}, which {split.dataset}/{split.split} does not have"
            raise BadInput(path, problem, "make it again with this data set")
        by_image[row["image_id"]].append(row)
    return {image_id: _one(rows, class_of) for image_id, rows in by_image.items()}


def _one(rows: list[dict], class_of: dict[int, int]) -> Found:
    rows = sorted(rows, key=lambda row: -row.get("score", 1.0))
    boxes = np.asarray([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    return Found(
        from_xywh(boxes),
        np.asarray([class_of[row["category_id"]] for row in rows], np.int64),
        np.asarray([row.get("score", 1.0) for row in rows], np.float64),
        tuple(row.get("segmentation") for row in rows),
    )
