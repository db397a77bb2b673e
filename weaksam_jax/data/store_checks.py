"""What the files of a store may hold: checked whenever one is read, so that nothing behind it meets
a box far outside of its image (those that reach beyond it are cut where they are used). Masks'
codes are checked when they are used (`Proposals.rles`)."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

# The source of a box: which kind of prompt made it.
SOURCES = ("grid", "coarse", "fine", "cross", "selective_search", "imported")
_MAPS = {"coarse", "fine"}
_DTYPES = {
    "source": np.uint8,
    "prompt": np.int32,
    "token": np.uint8,
    "predicted_iou": np.float32,
    "stability": np.float32,
}


def column_fault(arrays: Mapping[str, np.ndarray]) -> str | None:
    """What is wrong with the columns of a file of proposals; None: nothing."""
    size, boxes = arrays.get("size"), arrays.get("boxes")
    if size is None or size.dtype != np.int32 or size.shape != (2,) or not _is_size(size):
        return "has no size of an image"
    if boxes is None or boxes.ndim != 2 or boxes.shape[1] != 4:
        return "has no boxes of four numbers"
    fault = _table_fault(arrays, "", len(boxes)) or _box_fault(boxes, size)
    if not fault and not _are_points(arrays):
        fault = "has no points of five numbers"
    if not fault and "decoded_boxes" in arrays:
        offset = arrays.get("decoded_stability_offset")
        fault = _table_fault(arrays, "decoded_", arrays["decoded_boxes"].size // 4)
        if not fault and (arrays["decoded_prompt"] >= len(arrays["points"])).any():
            fault = "has a decoded mask of a prompt that it does not hold"
        if offset is None or offset.shape != () or not np.isfinite(offset):
            fault = "has decoded masks without stability_offset"
    if not fault and "rle_offsets" in arrays:
        fault = _code_fault(arrays, len(boxes))
    return fault


def _is_size(size: np.ndarray) -> bool:
    return bool(size.min() > 0 and int(size[0]) * int(size[1]) < 2**31)


def _shape(arrays: Mapping[str, np.ndarray], name: str, dtype: type) -> tuple[int, ...]:
    """The shape of a column; empty when it is not there or not of that type."""
    value = arrays.get(name)
    return () if value is None or value.dtype != dtype else value.shape


def _table_fault(arrays: Mapping[str, np.ndarray], prefix: str, count: int) -> str | None:
    """Columns that are not there, of another type or length, or hold what no number is."""
    for name, dtype in _DTYPES.items():
        if _shape(arrays, f"{prefix}{name}", dtype) != (count,):
            return f"has {count} boxes and no column {prefix}{name} for them"
        values = arrays[f"{prefix}{name}"]
        strange = np.isinf(values) if prefix else ~np.isfinite(values)  # empty masks have NaN
        if strange.any():
            return f"has NaN or infinity in {prefix}{name}"
    if (arrays[f"{prefix}source"] >= len(SOURCES)).any():
        return "has a box of an unknown source"
    if (arrays[f"{prefix}prompt"] < -1).any() or (arrays[f"{prefix}token"] > 3).any():
        return "has a box of no prompt or token"
    return None


def _box_fault(boxes: np.ndarray, size: np.ndarray) -> str | None:
    if boxes.dtype != np.float32 or not np.isfinite(boxes).all():
        return "has boxes that are no four finite numbers"
    low, high, most = boxes[:, :2], boxes[:, 2:], size[::-1].astype(np.float64)
    if not ((low >= -most).all() and (high <= 2 * most).all()):
        return "has a box far outside the image"
    return None if (high >= low).all() else "has an inverted box"


def _code_fault(arrays: Mapping[str, np.ndarray], count: int) -> str | None:
    """Places of the masks' codes that are not those of `count` masks, one behind the other."""
    offsets, codes = arrays["rle_offsets"], _shape(arrays, "rle_bytes", np.uint8)
    if offsets.shape != (count + 1,) or offsets.dtype != np.int32 or len(codes) != 1:
        return f"has {count} boxes and masks of another number"
    if offsets[0] != 0 or (np.diff(offsets) <= 0).any():
        return "has masks that are empty or not in order"
    return None if offsets[-1] == codes[0] else "has masks that are cut short"


def clue_fault(arrays: Mapping[str, np.ndarray], names: Iterable[str], classes: int) -> str | None:
    """What is wrong with these arrays of a file of clues of so many classes; None: nothing."""
    names = set(names)
    if "size" in arrays and _shape(arrays, "size", np.int32) != (2,):
        return "has no size of an image"
    if names & _MAPS and not _are_classes(arrays.get("class_ids"), classes):
        return f"has no class_ids of {classes} classes"
    for name in sorted(names & _MAPS):
        shape = _shape(arrays, name, np.float16)
        if len(shape) != 3 or shape[0] != len(arrays["class_ids"]) or 0 in shape[1:]:
            return f"has no maps {name} of its classes"
        if not (np.isfinite(arrays[name]).all() and (arrays[name] >= 0).all()):
            return f"has a value in {name} that no map has"
    if "class_logits" in names:
        logits = arrays.get("class_logits")
        if (
            _shape(arrays, "class_logits", np.float32) != (classes,)
            or not np.isfinite(logits).all()
        ):
            return f"has no class_logits of {classes} classes"
    if "points" in names and not _are_points(arrays):
        return "has no points of five numbers"
    return None


def _are_points(arrays: Mapping[str, np.ndarray]) -> bool:
    shape = _shape(arrays, "points", np.float32)
    return len(shape) == 2 and shape[1] == 5 and bool(np.isfinite(arrays["points"]).all())


def _are_classes(ids: np.ndarray | None, classes: int) -> bool:
    """Whether these are class indices, rising."""
    if ids is None or ids.dtype != np.int32 or ids.ndim != 1:
        return False
    return bool((np.diff(ids) > 0).all() and ((ids >= 0) & (ids < classes)).all())


def ids_fit(images: Any) -> bool:
    """Whether these are image ids, rising."""
    numbers = isinstance(images, list) and all(type(one) is int for one in images)
    return numbers and all(0 <= a < b < 2**63 for a, b in pairwise([*images, 2**63 - 1]))
