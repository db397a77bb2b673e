"""Masks as COCO RLE: encoded, and read from files with every check before pycocotools sees them.

pycocotools trusts what it gets: NaN corners take all memory, a code that is cut short is read
beyond its end, runs of another sum give IoU 0 without a word. So polygons and runs of truth,
results and pseudo masks are all read here.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from weaksam_jax.data.json_rows import (
    Row,
    as_integer,
    as_number,
    plain_integers,
    plain_numbers,
    shown,
)

MAX_CORNERS = 1_000_000
MAX_OUTLINE = 2**21  # pixels; pycocotools keeps 80 bytes of each
# Up to six characters a run: 30 bits, all that pycocotools shifts without overflow.
_CODE = re.compile(rb"(?:[P-o]{0,5}[0-O])+")
_CHUNK = 2**20  # masks' characters decoded at once


def encode_mask(mask: np.ndarray) -> dict:
    """COCO RLE `{"size": [H, W], "counts": str}` of a boolean mask `[H, W]`."""
    return _as_text(coco_mask.encode(np.asfortranarray(mask, np.uint8)))


def read_mask(shape: Any, height: int, width: int) -> dict | None:
    """COCO RLE `{"size": [H, W], "counts": str}` of a COCO `segmentation` of an image of that size.

    shape: polygons, or RLE with counts as a list or text. None and [] mean no mask: None. Runs of
    no length are taken out, since pycocotools counts wrongly with them. Raises `ValueError` that
    says what is wrong ("is no ...", to follow the field's name).
    """
    if shape is None or (isinstance(shape, list) and not shape):
        return None
    if isinstance(shape, list):
        polygons = _polygons(shape, height, width)
        return _as_text(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
    if not isinstance(shape, dict):
        raise ValueError(f"is neither polygons nor RLE ({shown(shape)})")
    _check_size(shape, height, width)
    runs = _runs(shape.get("counts"))
    pixels = height * width
    if (runs > pixels).any() or runs.sum() != pixels:
        total = sum(runs.tolist())
        raise ValueError(f"has runs of {total} pixels in all; its image has {pixels}")
    if isinstance(shape["counts"], list) or not runs[1:].all():
        counts = _without_empty(runs).tolist()
        rle = {"size": [height, width], "counts": counts}
        return _as_text(coco_mask.frPyObjects(rle, height, width))
    return _as_text({"size": [height, width], "counts": shape["counts"]})


def plain_masks(shapes: Sequence, sizes: Sequence[list[int]]) -> bool:
    """Whether all are RLE with counts as text that `read_mask` hands on as they are; sizes: the
    `[H, W]` of each one's image."""
    if not all(
        type(one) is dict and one.keys() == {"size", "counts"} and type(one["counts"]) is str
        for one in shapes
    ) or any(one["size"] != size for one, size in zip(shapes, sizes, strict=True)):
        return False
    if not all(type(side) is int for one in shapes for side in one["size"]):
        return False
    counts = [one["counts"] for one in shapes]
    if not all(map(str.isascii, counts)):
        return False
    pixels = [height * width for height, width in sizes]
    starts = np.cumsum([0, *map(len, counts)]) // _CHUNK
    bounds = [*np.flatnonzero(np.diff(starts, prepend=-1)).tolist(), len(counts)]
    return all(
        _are_plain(counts[low:high], pixels[low:high]) for low, high in itertools.pairwise(bounds)
    )


def are_codes(codes: Sequence[bytes], pixels: int) -> np.ndarray:
    """Whether each is the code (`counts`) of a mask of so many pixels: bool `[N]`."""
    runs, owner, whole = _decode(codes)
    return whole & (np.bincount(owner, weights=runs, minlength=len(codes)) == pixels)


def boxes_of(rows: Iterable[Row], masks: Iterable[dict | None]) -> np.ndarray:
    """float64 `[N, 4]`, x y width height: `bbox` of each row, or the box around its mask where it
    has none (of width and height 0 when the mask is empty)."""
    boxes = [
        row.box("bbox")
        if mask is None or row.values.get("bbox") is not None
        else coco_mask.toBbox(as_bytes(mask))
        for row, mask in zip(rows, masks, strict=True)
    ]
    return np.asarray(boxes, np.float64).reshape(-1, 4)


def as_bytes(rle: dict) -> dict:
    """An RLE as pycocotools takes it, counts as bytes."""
    counts = rle["counts"]
    return {**rle, "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def _as_text(rle: dict) -> dict:
    counts = rle["counts"]
    counts = counts if isinstance(counts, str) else counts.decode("ascii")
    return {"size": [int(side) for side in rle["size"]], "counts": counts}


def _polygons(shape: list, height: int, width: int) -> list[list[float]]:
    corners = [_corners(polygon) for polygon in shape]
    low, high = np.asarray([-width, -height]), np.asarray([2 * width, 2 * height])
    outline = 0.0
    for one in corners:
        if not ((one >= low) & (one <= high)).all():
            raise ValueError(f"has a corner more than an image's size outside {height} x {width}")
        outline += np.abs(np.diff(one, axis=0, append=one[:1])).max(1).sum()
    most = min(4 * (height + 10) * (width + 10), MAX_OUTLINE)
    if outline > most:
        raise ValueError(f"has an outline of {outline:.0f} pixels, more than {most}")
    if sum(map(len, corners)) > MAX_CORNERS:
        raise ValueError(f"has more than {MAX_CORNERS} corners")
    return [one.ravel().tolist() for one in corners]


def _corners(polygon: Any) -> np.ndarray:
    """float64 `[n, 2]` of one polygon, n >= 3."""
    if not isinstance(polygon, list):
        raise ValueError(f"is no list of polygons ({shown(polygon)}); write [[x, y, x, y, ...]]")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"has a polygon of {len(polygon)} numbers, not of 6, 8, 10, ...")
    found = plain_numbers(polygon)
    try:
        found = [as_number(one) for one in polygon] if found is None else found
    except ValueError as error:
        raise ValueError(f"has a corner that {error}") from error
    return np.asarray(found, np.float64).reshape(-1, 2)


def _check_size(shape: dict, height: int, width: int) -> None:
    size = shape.get("size")
    try:
        sides = [as_integer(one) for one in size] if isinstance(size, list) else None
    except ValueError as error:
        raise ValueError(f"has a size that {error}") from error
    if sides != [height, width]:
        raise ValueError(f"has size {shown(size)}; its image has [{height}, {width}]")


def _runs(counts: Any) -> np.ndarray:
    """int64 `[n]`: lengths of the runs of 0, 1, 0, ... of either form of counts."""
    if isinstance(counts, list):
        found = plain_integers(counts)
        try:
            return np.asarray(list(map(as_integer, counts)) if found is None else found, np.int64)
        except ValueError as error:
            raise ValueError(f"has a count that {error}") from error
    data = counts.encode("utf-8", "replace") if isinstance(counts, str) else counts
    if not isinstance(data, bytes):
        raise ValueError(f"has counts that are neither a list nor text ({shown(counts)})")
    runs, _, whole = _decode([data])
    if not whole[0]:
        raise ValueError(f"has counts that are no RLE code ({shown(counts)})")
    return runs


def _without_empty(runs: np.ndarray) -> np.ndarray:
    """The same mask in runs that are longer than 0, but for the first (background)."""
    value, kept = np.arange(len(runs)) % 2, runs > 0
    runs, value = runs[kept], value[kept]
    starts = np.flatnonzero(np.diff(value, prepend=-1))
    merged = np.add.reduceat(runs, starts)
    return np.concatenate([np.zeros(value[0], np.int64), merged])


def _are_plain(counts: Sequence[str], pixels: Sequence[int]) -> bool:
    runs, owner, whole = _decode([one.encode() for one in counts])
    if not whole.all():
        return False
    first = np.diff(owner, prepend=-1) > 0
    sums = np.bincount(owner, weights=runs, minlength=len(counts))
    return bool((runs[~first] > 0).all() and (sums == np.asarray(pixels, np.float64)).all())


def _decode(codes: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(runs int64 `[R]`, the code of each run int64 `[R]`, whether each code is one: bool `[N]`).

    COCO's code: characters "0" to "o" hold 5 bits each, the lowest first, and a bit that says that
    the run goes on; the last one's highest bit is the sign; from the fourth run on it is the
    difference to the last but one. Codes that are none give no runs.
    """
    whole = np.asarray([_CODE.fullmatch(one) is not None for one in codes], bool)
    good = [one for one, fits in zip(codes, whole, strict=True) if fits]
    bits = np.frombuffer(b"".join(good), np.uint8) - 48
    ends = np.flatnonzero(bits < 32)
    counts = np.diff(np.searchsorted(ends, np.cumsum([0, *map(len, good)])))
    owner = np.repeat(np.flatnonzero(whole), counts)
    runs = _undo_differences(_numbers(bits, ends), owner)
    whole[owner[runs < 0]] = False
    kept = whole[owner]
    return runs[kept], owner[kept], whole


def _numbers(bits: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """int64 `[R]`: the number of each group of characters; ends: where each has its last one."""
    length = np.diff(ends, prepend=-1)
    start = ends - length + 1
    values = np.where(bits[ends] & 16, -1 << (5 * length), 0)
    for place in range(int(length.max(initial=0))):
        has = np.flatnonzero(length > place)
        values[has] |= (bits[start[has] + place].astype(np.int64) & 31) << (5 * place)
    return values


def _undo_differences(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """From the fourth of each code on, the sum with the last but one."""
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    place = np.arange(len(owner)) - np.repeat(first, np.diff(np.append(first, len(owner))))
    runs = values.copy()
    for chain in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        index = np.flatnonzero(chain)
        if len(index):
            sums = np.cumsum(values[index])
            begins = np.flatnonzero(np.diff(owner[index], prepend=-1))
            before = sums[begins] - values[index[begins]]
            runs[index] = sums - np.repeat(before, np.diff(np.append(begins, len(index))))
    return runs
