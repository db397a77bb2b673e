"""Images to proposals on disk: clues, prompts, SAM (or selective search), one file per image.

Any number of processes may work on one split; each image's file is written once, whole or not at
all, and a killed process goes on where it stopped. The files do not depend on the number of shards.

Memory of a process, beside the networks: that of one image (`bridge.runtime.workers` says when of
several), at most the sum of these. The clue network: 1.0 GB for 375 x 500 pixels at WeakTr's
published size, and 3.1 GB of attention for the largest it sees, 640 x 640; its maps: 0.08 GB per
class for 375 x 500 pixels, 0.4 GB for 1000 x 1000, the largest they are (`WeakTrClues`). SAM's
image encoder, whatever the size of the image: 2.5 GB for ViT-B (measured on a CPU), a third more
for L and H by their number of heads. Decoded masks: 0.84 GB with the paper's prompts (`propose`),
and a few full-size ones (`bridge.sam.decoder.numbers_at_once`).
"""

import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import safetensors

from bridge.clues.interface import ClueNetwork, Clues
from bridge.proposals.presets import PRESETS, PresetName
from bridge.proposals.prompts import PromptConfig, Prompts, dense_grid, prompt_points
from bridge.proposals.sam_proposals import propose
from bridge.proposals.selection import ProposalConfig
from bridge.proposals.selective_search import SelectiveSearchConfig, selective_search
from bridge.runtime.workers import for_images
from bridge.sam.networks import Sam
from bridge.weights.fingerprints import network_fingerprint, weights_fingerprint
from weaksam_jax.data.content import content_hash
from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.sealed import open_arrays
from weaksam_jax.data.store import (
    SOURCES,
    Proposals,
    proposal_path,
    reopen_split,
    write_manifest,
    write_proposals,
    write_stored,
)
from weaksam_jax.errors import BadInput
from weaksam_jax.files import fingerprint, read_bytes
from weaksam_jax.ranges import Settings, Side
from weaksam_jax.settings import to_plain

# Raise when code here changes what is written for the same settings: old files are then redone.
FORMAT = 3
# Temporary files of killed processes are removed when they are older than this, in seconds: a
# living one is there for milliseconds.
LEFTOVER_AGE = 600
_LEFTOVER = "*/.*.safetensors.*-*.tmp"  # as `weaksam_jax.files.atomic_path` names them
# Same settings and versions, same files: cluster centres are scikit-learn's, resizing is Pillow's.
_PACKAGES = (
    *("torch", "segment-anything", "opencv-contrib-python-headless", "numpy", "timm"),
    *("scikit-learn", "pillow"),
)


@dataclass(frozen=True)
class ExportConfig(Settings):
    """What is written."""

    source: Literal["sam", "selective_search"] = "sam"
    """Where boxes come from."""
    labels: Literal["tags", "predicted", "tags_at_test_time"] = "tags"
    """Classes that the clue network is asked for. tags: the image's, for training splits;
    predicted: those that it predicts itself, for all others; tags_at_test_time: a test split's
    tags, as the official proposals of COCO's validation images were made (detectors that use
    them know at test time what is in the image)."""
    prompts: PromptConfig = field(default_factory=PromptConfig)
    """Points for SAM."""
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    """From masks to proposals."""
    search: SelectiveSearchConfig = field(default_factory=SelectiveSearchConfig)
    """For selective search."""
    clue_side: Side = 96
    """Long side of the stored maps."""

    @classmethod
    def preset(cls, name: PresetName, **changes) -> "ExportConfig":
        """Settings by name: for SAM ViT-H, `sam_mini` (mini) or `sam_mini_lite` (light).

        What a preset asks of the clue network: `bridge.proposals.presets.clue_network`.
        """
        preset = PRESETS[name]
        return cls(prompts=preset.prompts, proposals=preset.proposals, **changes)

    @property
    def by_tags(self) -> bool:
        """Whether tags are looked at."""
        return self.labels != "predicted"


@dataclass(frozen=True)
class ExportReport:
    """What one call did. written, skipped: images. complete: the split now has its manifest."""

    written: int
    skipped: int
    seconds: float
    complete: bool


def export_split(
    split: TagSplit,
    clue_network: ClueNetwork | None,
    sam: Sam | None,
    config: ExportConfig,
    root: str | Path,
    clue_root: str | Path,
    shard: tuple[int, int] = (0, 1),
    progress: bool = True,
    workers: int | None = None,
    supervision: Mapping[str, Mapping[str, str]] | None = None,
) -> ExportReport:
    """Writes proposals and clues of the images `records[i::n]`, for shard = (i, n).

    `<root>/<split>/<xx>/<id>.safetensors` holds the proposals (`weaksam_jax.data.store`) and, with
    a clue network, `<clue_root>/<split>/<xx>/<id>.safetensors` the clues: coarse, fine float16
    `[c, h, w]`, class_ids int32 `[c]`, class_logits float32 `[C]`, points float32 `[P, 5]`, size
    int32 `[2]`, the image's height and width. An image is skipped when its files are there, whole,
    and were made from the same settings, networks, image and tags (metadata `fingerprint`). The
    manifest is written once every image of the split is there; it is removed first when there is
    something to do. Without a clue network the prompts are the grid alone. workers: images at a
    time (`bridge.runtime.workers`); the files do not depend on it. supervision: what the networks
    have seen (rows of `weaksam_jax.supervision.ledger_row`), for the manifest. Raises `BadInput`
    for an unreadable image.
    """
    if config.source == "sam" and sam is None:
        raise ValueError("proposals of source 'sam' need a SAM")
    job = _Job(
        split.split,
        clue_network,
        sam,
        config=config,
        root=Path(root),
        clue_root=Path(clue_root),
    )
    job.supervision = dict(supervision or {})
    mine = split.records[shard[0] :: shard[1]]
    todo = [record for record in mine if not job.is_done(record, whole=True)]
    if todo:
        reopen_split(root, split.split)
    start = time.monotonic()
    name = f"proposals {split.split}"
    for_images(sam, workers)(job.run, todo, name, progress=progress)
    complete = _finish(job, split)
    seconds = time.monotonic() - start
    return ExportReport(len(todo), len(mine) - len(todo), seconds, complete=complete)


class _Job:
    """What all images of an export have in common."""

    def __init__(
        self,
        split: str,
        clue_network: ClueNetwork | None,
        sam: Sam | None,
        config: ExportConfig,
        root: Path,
        clue_root: Path,
    ):
        self.split, self.config, self.root, self.clue_root = split, config, root, clue_root
        self.sam = sam if config.source == "sam" else None
        self.clue_network = clue_network
        self.supervision: dict[str, Mapping[str, str]] = {}
        self.networks = {
            "sam": None if self.sam is None else weights_fingerprint(self.sam),
            "clues": None if clue_network is None else network_fingerprint(clue_network),
        }
        used = to_plain(config)
        del used["search" if config.source == "sam" else "proposals"]
        self.key = {"format": FORMAT, "settings": used, "networks": self.networks}
        self.fingerprint_of_job = fingerprint(self.key)

    def fingerprint(self, record: TagRecord) -> str:
        """What the files of an image were made from."""
        try:
            content = content_hash(record.path)
        except BadInput as error:
            hint = "restore the image or take it out of the data set"
            raise BadInput(record.path, error.problem, hint) from error
        image = [record.image_id, record.width, record.height, content, self._tags(record)]
        return fingerprint([self.key, *image])

    def is_done(self, record: TagRecord, whole: bool = False) -> bool:
        """Whether every file of the image is there and up to date; whole: and not damaged, for
        which all of it is read."""
        roots = [self.root] if self.clue_network is None else [self.root, self.clue_root]
        expected = self.fingerprint(record)
        paths = [proposal_path(root, self.split, record.image_id) for root in roots]
        return all(stored_metadata(path, whole).get("fingerprint") == expected for path in paths)

    def run(self, record: TagRecord) -> None:
        """Computes and writes one image's files, the proposals last."""
        image = load_image(record.path)
        clues = None
        if self.clue_network is not None:
            clues = self.clue_network(image, self._tags(record))
        prompts = self._prompts(clues, *image.shape[:2])
        metadata = self._metadata(record)
        if clues is not None:
            self._write_clues(record, clues, prompts, metadata=metadata)
        proposals = self._propose(record, image, prompts)
        counts = np.bincount(proposals.source, minlength=len(SOURCES))
        metadata["counts"] = " ".join(str(count) for count in counts)
        write_proposals(self.root, self.split, proposals, metadata=metadata)

    def _tags(self, record: TagRecord) -> tuple[int, ...] | None:
        """The classes that the clue network is asked for."""
        return record.tags if self.config.by_tags else None

    def _metadata(self, record: TagRecord) -> dict[str, str]:
        """Metadata of both files of an image."""
        return {
            "fingerprint": self.fingerprint(record),
            "job": self.fingerprint_of_job,
            "labels": self.config.labels,
            "networks": str(self.networks),
        }

    def _propose(self, record: TagRecord, image: np.ndarray, prompts: Prompts) -> Proposals:
        if self.sam is None:
            return selective_search(image, self.config.search, image_id=record.image_id)
        config = self.config.proposals
        return propose(self.sam, image, prompts, config=config, image_id=record.image_id)

    def _prompts(self, clues: Clues | None, height: int, width: int) -> Prompts:
        config = self.config.prompts
        if clues is not None and len(clues.class_ids):
            return prompt_points(clues, config, height, width=width)
        side = config.grid_side if "grid" in config.sources else 0
        return Prompts(dense_grid(side, height, width), np.zeros((0, 5), np.float32))

    def _write_clues(
        self, record: TagRecord, clues: Clues, prompts: Prompts, metadata: dict[str, str]
    ) -> None:
        side = self.config.clue_side
        arrays = {
            "coarse": shrink(clues.coarse, side),
            "fine": shrink(clues.fine, side),
            "class_ids": clues.class_ids.astype(np.int32),
            "class_logits": clues.class_logits.astype(np.float32),
            "points": prompts.points.astype(np.float32),
            "size": np.asarray([record.height, record.width], np.int32),
        }
        place = self.clue_root, self.split, record.image_id
        write_stored(*place, arrays=arrays, metadata=metadata)


def shrink(maps: np.ndarray, long_side: int) -> np.ndarray:
    """Maps `[c, h, w]` as float16 with a long side of at most `long_side` (area average)."""
    height, width = maps.shape[1:]
    factor = min(1.0, long_side / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = [cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in maps]
    return np.asarray(small, np.float16).reshape(len(maps), size[1], size[0])


def stored_metadata(path: Path, whole: bool = False) -> dict[str, str]:
    """The metadata of a file of the store; empty when it is missing or cut short or, with `whole`,
    damaged anywhere."""
    try:
        if whole:
            return open_arrays(read_bytes(path), str(path))[1]
        with safetensors.safe_open(str(path), framework="numpy") as file:
            return file.metadata() or {}
    except (OSError, safetensors.SafetensorError, BadInput):
        return {}


def _finish(job: _Job, split: TagSplit) -> bool:
    """Writes the manifest if every image of the split is there; says whether it is.

    Every process looks after its last file, so the last of them sees all files; two that end at the
    same moment write the same bytes.
    """
    if not all(job.is_done(record) for record in split.records):
        return False
    _remove_leftovers((job.root / split.split, job.clue_root / split.split))
    ids = [one.image_id for one in split.records]
    write_manifest(job.root, split.split, ids, metadata=_manifest(job, split))
    return True


def _manifest(job: _Job, split: TagSplit) -> dict[str, Any]:
    """What the manifest says beside the images' ids."""
    paths = [proposal_path(job.root, split.split, one.image_id) for one in split.records]
    counts = np.asarray([stored_metadata(path)["counts"].split() for path in paths], int)
    means = counts.mean(0) if len(counts) else np.zeros(len(SOURCES))
    # The tags of a split whose classes are predicted are not looked at, not even counted.
    tagged = job.config.by_tags
    negatives = {"negatives": sum(not one.tags for one in split.records)} if tagged else {}
    return {
        "dataset": split.dataset,
        "split": split.split,
        "labels": job.config.labels,
        "per_image": float(means.sum()),
        "per_source": {name: float(mean) for name, mean in zip(SOURCES, means, strict=True)},
        **negatives,
        "fingerprint": job.fingerprint_of_job,
        **job.key,
        "versions": _versions(),
        **({"supervision": job.supervision} if job.supervision else {}),
    }


def _remove_leftovers(folders: Iterable[Path]) -> None:
    """Deletes the temporary files that killed processes left behind."""
    for path in (path for folder in folders for path in folder.glob(_LEFTOVER)):
        try:
            if time.time() - path.stat().st_mtime > LEFTOVER_AGE:
                path.unlink()
        except FileNotFoundError:  # another process was faster
            continue


def _versions() -> dict[str, str]:
    """Versions of what computes the proposals."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
