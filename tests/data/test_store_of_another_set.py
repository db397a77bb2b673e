"""A store of other images with the same ids is refused by whoever reads it."""

from pathlib import Path

import numpy as np
import pytest

from bridge.proposals.official_pickles import export_official
from bridge.proposals.verify import verify_split
from experiments.pipeline import clues, metrics
from weaksam_jax.data.packs import write_pack
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.store import (
    Proposals,
    proposal_path,
    read_clues,
    read_proposals,
    write_manifest,
    write_proposals,
    write_stored,
)
from weaksam_jax.detectors.mil.evidence import clue_evidence
from weaksam_jax.detectors.mil.samples import load_boxes
from weaksam_jax.errors import BadInput
from weaksam_jax.report.artefacts import Artefacts, RunFiles

WIDTH, HEIGHT = 80, 64
NAMES = ("fine", "class_logits")


def split_of(width: int, height: int) -> TagSplit:
    record = TagRecord(7, "7.jpg", Path("7.jpg"), width, height, tags=(0,))
    return TagSplit("set", "train", ("cat", "dog"), category_ids=(1, 2), records=(record,))


OWN = split_of(WIDTH, HEIGHT)
OTHERS = [split_of(*size) for size in ((400, 300), (64, 80), (81, 64), (80, 63), (160, 128))]


@pytest.fixture(params=["loose", "packed"])
def store(tmp_path, request):
    """Proposals and clues of one image, with their manifest."""
    root, count = tmp_path / "s", {"source": np.uint8, "prompt": np.int32, "token": np.uint8}
    rows = {name: np.zeros(1, dtype) for name, dtype in count.items()}
    rows |= {name: np.ones(1, np.float32) for name in ("predicted_iou", "stability")}
    boxes, points = np.asarray([[4, 4, 60, 60]], np.float32), np.zeros((1, 5), np.float32)
    one = Proposals(7, HEIGHT, WIDTH, boxes=boxes, masks=None, points=points, **rows)
    made = {"job": "j", "fingerprint": "f"}
    write_proposals(root, "train", one, made)
    maps = np.ones((1, 8, 10), np.float16)
    arrays = {"fine": maps, "coarse": maps, "class_ids": np.zeros(1, np.int32)}
    arrays |= {"class_logits": np.zeros(2, np.float32), "points": points}
    arrays["size"] = np.asarray([HEIGHT, WIDTH], np.int32)
    write_stored(root / "clues", "train", 7, arrays=arrays, metadata=made)
    means = {"per_image": 1.0, "per_source": {"grid": 1.0}, "fingerprint": "j"}
    write_manifest(root, "train", [7], means)
    for place in (root, root / "clues") if request.param == "packed" else ():
        path = proposal_path(place, "train", 7)
        write_pack(place / "train", [7], [path.read_bytes()])
        path.unlink()
    return root


def artefacts(root: Path, split: TagSplit) -> Artefacts:
    names = ("root", "page", "settings", "metrics", "log", "mil", "pgt", "top1", "retrain", "masks")
    files = RunFiles(**dict.fromkeys(names, root), clues=root / "clues", proposals=root)
    return Artefacts(files, split, None, metrics={}, settings={}, log={}, found={})


READERS = {
    "proposals": lambda root, split: read_proposals(root, "train", split.records[0]),
    "training": lambda root, split: load_boxes(root, split, split.records[0], min_side=1.0),
    "recall": lambda root, split: metrics.proposals(root, {"train": split}, {"train": None}),
    "pickles": lambda root, split: export_official(root, split, root / "x.pkl"),
    "verify": lambda root, split: verify_split(
        root, "train", records=split.records, progress=False
    ),
    "report": lambda root, split: artefacts(root, split).proposals(split.records[0]),
    "clues": lambda root, split: read_clues(
        root / "clues", "train", split.records[0], names=NAMES, classes=2
    ),
    "logits": lambda root, split: clues.stored_logits(root / "clues", split),
    "cams": lambda root, split: metrics.cam_detections(root / "clues", split),
    "evidence": lambda root, split: clue_evidence(
        root / "clues", "train", split.records[0], np.zeros((1, 4), np.float32), 2
    ),
    "clues of the report": lambda root, split: artefacts(root, split).clues(split.records[0]),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_images_of_another_size(store, reader):
    READERS[reader](store, OWN)
    for other in OTHERS:
        record = other.records[0]
        words = rf"of an image of 80 x 64 pixels; image 7 is {record.width} x {record.height}"
        with pytest.raises(BadInput, match=words) as error:
            READERS[reader](store, other)
        assert "7.safetensors" in error.value.path
        assert "store of this data set" in error.value.hint or reader == "verify"


def test_clues_of_before_have_no_size(tmp_path):
    arrays = {"class_logits": np.zeros(2, np.float32)}
    write_stored(tmp_path, "train", 7, arrays=arrays, metadata={})
    assert (clues.stored_logits(tmp_path, OTHERS[0]) == 0).all()
    for size in (np.zeros(2), np.zeros(3, np.int32), np.zeros((), np.int32)):
        write_stored(tmp_path, "train", 7, arrays=arrays | {"size": size}, metadata={})
        with pytest.raises(BadInput, match="has no size of an image"):
            clues.stored_logits(tmp_path, OTHERS[0])
