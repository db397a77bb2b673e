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

from bridge.weights.machine import shown
from bridge.weights.pickles import read_pickle
from weaksam_jax.boxes import clip
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.store import (
    SOURCES,
    Proposals,
    read_proposals,
    reopen_split,
    write_manifest,
    write_proposals,
)
from weaksam_jax.errors import BadInput
from weaksam_jax.files import check_replaced, file_fingerprint, fingerprint, write_bytes

Format = Literal["mist-voc", "mist-coco", "oicr"]
Source = Literal["grid", "coarse", "fine", "cross", "selective_search", "imported"]
# Boxes that reach further beyond the image than this are of another image, not rounding.
OVERHANG = 1.0
# Protocol 3 is read by every Python 3; later ones would not be by the old code's environments.
PROTOCOL = 3
RENAMED = ("numpy._core.", "numpy.core.")  # by NumPy 2; both names lead to the same functions
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
        entries = [(boxes, None) for boxes in content]
    else:
        problem = f"holds a {type(content).__name__}, neither MIST's dict nor OICR's list"
        raise BadInput(path, problem, HINT)
    pairs = zip(split.records, entries, strict=True)
    return [_our_boxes(path, record, boxes, scores=scores) for record, (boxes, scores) in pairs]


def _mist_entries(path: str | Path, content: dict, split: TagSplit) -> list[tuple[Any, Any]]:
    """Entries of `boxes` and `scores` (None: the file has none) in the order of the split."""
    hint = "give a MIST pickle: a dict of boxes, scores and indexes"
    columns = {
        name: _column(path, name, content.get(name), hint=hint) for name in ("boxes", "indexes")
    }
    boxes, indexes = columns["boxes"], [_id(path, *one) for one in enumerate(columns["indexes"])]
    columns["scores"] = _column(path, "scores", content.get("scores", boxes), hint=hint)
    for name, values in columns.items():
        if len(values) != len(indexes):
            problem = f"has {len(values)} entries of {name} and {len(indexes)} indexes"
            raise BadInput(path, problem, "download it again")
    place = {image_id: row for row, image_id in enumerate(indexes)}
    if len(place) < len(indexes):
        twice = next(one for row, one in enumerate(indexes) if place[one] != row)
        raise BadInput(path, f"has image {twice} twice in its indexes", "download it again")
    missing = [record for record in split.records if record.image_id not in place]
    if missing:
        problem = f"has no image {missing[0].image_id} ({len(missing)} images are missing)"
        raise BadInput(path, problem, f"give the pickle of {split.dataset}/{split.split}")
    rows = [place[record.image_id] for record in split.records]
    return [(boxes[row], columns["scores"][row] if "scores" in content else None) for row in rows]


def _column(path: str | Path, name: str, values: Any, hint: str) -> list | tuple | np.ndarray:
    """One of the lists of a MIST pickle (or an array, where all its entries are alike)."""
    if isinstance(values, list | tuple) or (isinstance(values, np.ndarray) and values.ndim):
        return values
    kind = "nothing" if values is None else f"a {type(values).__name__}"
    raise BadInput(path, f"lacks boxes or integer indexes: {name} is {kind}, no list", hint)


def _id(path: str | Path, row: int, value: Any) -> int:
    """An image id: a whole number (an array may have made it a fraction of .0)."""
    whole = isinstance(value, np.number) and np.isfinite(value) and value == np.floor(value)
    if type(value) is int or whole:
        return int(value)
    problem = f"lacks boxes or integer indexes: entry {row} of indexes is no whole number"
    raise BadInput(path, problem, "give a MIST pickle: a dict of boxes, scores and indexes")


def _check_scores(path: str | Path, where: str, scores: Any, count: int) -> None:
    """`BadInput` for an image whose scores are not one a box (they are not read beyond that)."""
    whole = isinstance(scores, list | tuple | np.ndarray)
    found = np.size(scores) if isinstance(scores, np.ndarray) else len(scores) if whole else None
    if found != count:
        what = type(scores).__name__ if found is None else found
        problem = f"scores of {where} are {what} for {count} boxes"
        raise BadInput(path, problem, "download it again")


def _our_boxes(path: str | Path, record: TagRecord, entry: Any, scores: Any) -> np.ndarray:
    """An entry's boxes in our convention; `BadInput` when they cannot be of this image, or when
    there are scores (not None) of another number."""
    image = f"image {record.image_id} ({shown(record.file_name)})"
    where = f"boxes of {image}"
    hint = "give the pickle of this data set, its images in the order of the image list"
    boxes = _numbers(entry)
    if boxes is None:
        what = f"an array {entry.shape}" if isinstance(entry, np.ndarray) else type(entry).__name__
        raise BadInput(path, f"{where} are no numbers [n, 4] ({what})", hint)
    if scores is not None:
        _check_scores(path, image, scores, count=len(boxes))
    boxes = boxes[boxes.any(1)] + [0, 0, 1, 1]
    size = np.asarray([record.width, record.height], np.float64)
    if not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
        raise BadInput(path, f"{where} are inverted or not finite", hint)
    if (boxes[:, :2] < -OVERHANG).any() or (boxes[:, 2:] > size + OVERHANG).any():
        problem = f"{where} reach beyond its {record.width} x {record.height} pixels"
        raise BadInput(path, problem, hint)
    boxes = clip(boxes, float(record.width), float(record.height))
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)].astype(np.float32)


def _numbers(entry: Any) -> np.ndarray | None:
    """Float64 `[n, 4]` of an array or of lists of rows; None for anything else. One box may lack
    its first dimension; none may have any."""
    if isinstance(entry, list | tuple):
        rows = [_row(row) for row in entry]
        flat = _row(entry)
        if flat is None and any(row is None for row in rows):
            return None
        entry = np.asarray(rows if flat is None else flat, np.float64)
    if not isinstance(entry, np.ndarray) or entry.dtype.kind not in "fiu":
        return None
    if entry.size == 0 or entry.shape == (4,):
        return entry.astype(np.float64).reshape(-1, 4)
    return entry.astype(np.float64) if entry.ndim == 2 and entry.shape[1] == 4 else None


def _row(row: Any) -> list[float] | None:
    """Four numbers, or None."""
    values = row.tolist() if isinstance(row, np.ndarray) and row.shape == (4,) else row
    if not isinstance(values, list | tuple) or len(values) != 4:
        return None
    plain = all(type(x) in (int, float) or isinstance(x, np.number) for x in values)
    return [float(x) for x in values] if plain else None


def import_official(
    path: str | Path, split: TagSplit, root: str | Path, source: Source = "imported"
) -> int:
    """Writes a store from a pickle of the official code; returns the number of boxes.

    Scores, points and masks are not in the pickles: predicted IoU, stability and token are 0,
    prompt -1, and `source` is the same for all boxes (the official files mix their sources). The
    manifest comes last.
    """
    boxes = read_official(path, split)
    reopen_split(root, split.split)
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
    store lacks, and in place of a file that is no pickle.
    """
    entries = []
    for record in split.records:
        boxes = read_proposals(root, split.split, record).boxes
        low = np.maximum(boxes[:, :2], 0)
        boxes = np.concatenate([low, np.maximum(boxes[:, 2:] - 1, low)], axis=1)
        entries.append(boxes.astype(np.uint16 if form == "mist-voc" else np.float32))
    content: Any = entries
    if form != "oicr":
        shape = (-1,) if form == "mist-voc" else (-1, 1)
        scores = [np.ones(len(own), np.float32).reshape(shape) for own in entries]
        ids = [record.image_id for record in split.records]
        content = {"boxes": entries, "scores": scores, "indexes": ids}
    check_replaced(path, _is_pickle)
    write_bytes(path, _with_old_names(pickle.dumps(content, protocol=PROTOCOL)))
    return sum(map(len, entries))


def _is_pickle(path: Path) -> bool:
    """Whether a file is a pickle of protocol 2 or later, or empty."""
    with open(path, "rb") as file:
        return file.read(1) in (b"\x80", b"")


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
