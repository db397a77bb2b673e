"""Proposal pickles of WeakSAM's official code, read into a store and written from one.

MIST (wetectron): a dict of three lists, `boxes` [n, 4] (uint16 for VOC, float32 for COCO),
`scores` (ones) and `indexes` (integer image ids). OICR (mmdet): a list of float32 [n, 4] in the
order of the image list, without ids. Boxes are [xmin, ymin, xmax, ymax] of pixel indices, the last
column and row inside; ours are [x1, y1, x2, y2] with x2 = xmax + 1.
"""

import io
import pickle
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bridge.weights.pickles import RENAMED, read_pickle
from weaksam_jax.boxes import clip
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.store import (
    SOURCES,
    Proposals,
    read_proposals,
    write_manifest,
    write_proposals,
)
from weaksam_jax.errors import BadInput
from weaksam_jax.files import atomic_path, file_fingerprint, fingerprint

Format = Literal["mist-voc", "mist-coco", "oicr"]
Source = Literal["grid", "coarse", "fine", "cross", "selective_search", "imported"]
# Boxes that reach further beyond the image than this are of another image, not rounding.
OVERHANG = 1.0
# Protocol 3 is read by every Python 3; later ones would not be by the old code's environments.
PROTOCOL = 3
HINT = "give a proposal pickle of MIST or OICR; it may hold arrays and lists only"


def read_official(path: str | Path, split: TagSplit) -> list[np.ndarray]:
    """Boxes float32 `[n, 4]` (ours, inside the image) for each image of the split, in its order.

    The format is recognised by its content. Boxes of empty masks, [0, 0, 0, 0], are left out; what
    reaches up to a pixel beyond the image is cut off. Raises `BadInput` for another content, images
    without entry, a list of another length, and boxes that cannot be of the image (lists of the
    OICR format have no ids: one in another order is noticed in this way, or not at all).
    """
    content = read_pickle(path, HINT)
    if isinstance(content, dict):
        entries = _mist_entries(path, content, split)
    elif isinstance(content, list):
        if len(content) != len(split.records):
            problem = f"lists {len(content)} images, {split.dataset}/{split.split} has "
            hint = "give the pickle of this split, or the split of this pickle"
            raise BadInput(path, f"{problem}{len(split.records)}", hint)
        entries = content
    else:
        problem = f"holds a {type(content).__name__}, neither MIST's dict nor OICR's list"
        raise BadInput(path, problem, HINT)
    pairs = zip(split.records, entries, strict=True)
    return [_our_boxes(path, record, entry) for record, entry in pairs]


def _mist_entries(path: str | Path, content: dict, split: TagSplit) -> list[Any]:
    """Entries of `boxes` in the order of the split."""
    try:
        boxes, indexes = content["boxes"], [int(one) for one in content["indexes"]]
    except (KeyError, TypeError, ValueError) as error:
        hint = "give a MIST pickle: a dict of boxes, scores and indexes"
        raise BadInput(path, f"lacks boxes or integer indexes ({error})", hint) from error
    if len(boxes) != len(indexes):
        problem = f"has {len(boxes)} entries of boxes and {len(indexes)} indexes"
        raise BadInput(path, problem, "download it again")
    place = {image_id: row for row, image_id in enumerate(indexes)}
    missing = [record for record in split.records if record.image_id not in place]
    if missing:
        problem = f"has no image {missing[0].image_id} ({len(missing)} images are missing)"
        raise BadInput(path, problem, f"give the pickle of {split.dataset}/{split.split}")
    return [boxes[place[record.image_id]] for record in split.records]


def _our_boxes(path: str | Path, record: TagRecord, entry: Any) -> np.ndarray:
    """An entry's boxes in our convention; `BadInput` when they cannot be of this image."""
    where = f"boxes of image {record.image_id} ({record.file_name})"
    hint = "give the pickle of this data set, its images in the order of the image list"
    try:
        boxes = np.asarray(entry, np.float64)
        boxes = boxes.reshape(-1, 4) if boxes.size else np.zeros((0, 4))
    except (TypeError, ValueError) as error:
        raise BadInput(path, f"{where} are no numbers [n, 4]", hint) from error
    boxes = boxes[boxes.any(1)] + [0, 0, 1, 1]
    size = np.asarray([record.width, record.height], np.float64)
    if not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
        raise BadInput(path, f"{where} are inverted or not finite", hint)
    if (boxes[:, :2] < -OVERHANG).any() or (boxes[:, 2:] > size + OVERHANG).any():
        problem = f"{where} reach beyond its {record.width} x {record.height} pixels"
        raise BadInput(path, problem, hint)
    boxes = clip(boxes, float(record.width), float(record.height))
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)].astype(np.float32)


def import_official(
    path: str | Path, split: TagSplit, root: str | Path, source: Source = "imported"
) -> int:
    """Writes a store from a pickle of the official code; returns the number of boxes.

    Scores, points and masks are not in the pickles: predicted IoU, stability and token are 0,
    prompt -1, and `source` is the same for all boxes (the official files mix their sources). The
    manifest comes last.
    """
    boxes = read_official(path, split)
    (Path(root) / split.split / "manifest.json").unlink(missing_ok=True)
    key = {"imported": file_fingerprint(path), "source": source}
    job = fingerprint(key)
    for record, own in zip(split.records, boxes, strict=True):
        metadata = {"job": job, "fingerprint": fingerprint([job, record.image_id])}
        write_proposals(root, split.split, _proposals(record, own, source), metadata=metadata)
    total = sum(map(len, boxes))
    mean = total / max(len(boxes), 1)
    manifest = {
        "dataset": split.dataset,
        "split": split.split,
        "per_image": mean,
        "per_source": {name: mean * (name == source) for name in SOURCES},
        "fingerprint": job,
        **key,
    }
    write_manifest(root, split.split, [one.image_id for one in split.records], metadata=manifest)
    return total


def _proposals(record: TagRecord, boxes: np.ndarray, source: Source) -> Proposals:
    """An image's proposals of which only the boxes `[n, 4]` are known."""
    count = len(boxes)
    return Proposals(
        record.image_id,
        record.height,
        record.width,
        boxes=boxes,
        source=np.full(count, SOURCES.index(source), np.uint8),
        prompt=np.full(count, -1, np.int32),
        token=np.zeros(count, np.uint8),
        predicted_iou=np.zeros(count, np.float32),
        stability=np.zeros(count, np.float32),
        masks=None,
    )


def export_official(
    root: str | Path, split: TagSplit, path: str | Path, form: Format = "mist-voc"
) -> int:
    """Writes a store as a pickle that the official MIST or OICR code reads; returns
    the boxes.

    Boxes become inclusive pixel indices. mist-voc truncates them to uint16, as the official
    conversion does; the others are float32. Images keep the order of the split's list. Arrays are
    written under NumPy 1's module names, which both major versions read. (A box of the first pixel
    alone becomes what the format uses for an empty mask.) Raises `BadInput` for an image that the
    store lacks.
    """
    entries = []
    for record in split.records:
        boxes = read_proposals(root, split.split, record.image_id).boxes
        low = np.maximum(boxes[:, :2], 0)
        boxes = np.concatenate([low, np.maximum(boxes[:, 2:] - 1, low)], axis=1)
        entries.append(boxes.astype(np.uint16 if form == "mist-voc" else np.float32))
    content: Any = entries
    if form != "oicr":
        shape = (-1,) if form == "mist-voc" else (-1, 1)
        scores = [np.ones(len(own), np.float32).reshape(shape) for own in entries]
        ids = [record.image_id for record in split.records]
        content = {"boxes": entries, "scores": scores, "indexes": ids}
    with atomic_path(path) as temporary:
        temporary.write_bytes(_with_old_names(pickle.dumps(content, protocol=PROTOCOL)))
    return sum(map(len, entries))


def _with_old_names(data: bytes) -> bytes:
    """A pickle of protocol 3 with `numpy._core` renamed to `numpy.core` where it is a module."""
    new, old = (name.encode() for name in RENAMED)
    parts, start = [], 0
    for place in _globals(data):
        if data.startswith(new, place + 1):  # the letter c, then the module and the name
            parts += [data[start : place + 1], old]
            start = place + 1 + len(new)
    return b"".join([*parts, data[start:]])


def _globals(data: bytes) -> Iterator[int]:
    """Positions of the opcodes that name a function or class."""
    for opcode, _, place in pickletools.genops(io.BytesIO(data)):
        if opcode.name == "GLOBAL":
            yield place
