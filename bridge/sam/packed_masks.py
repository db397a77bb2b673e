"""Masks as bits, eight pixels a byte: what makes hundreds of full-size masks cheap on a CPU.

A packed mask is uint8 `[H, ceil(W / 8)]`: every row of the image packed on its own
(`numpy.packbits`, first pixel in the highest bit, rows padded with zeros).
"""

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor


def pack_above(logits: Tensor, threshold: float) -> np.ndarray:
    """Packed masks `[n, H, ceil(W / 8)]` of logits `[n, H, W]` > threshold."""
    # NumPy compares five times faster than torch on a CPU; a GPU sends only the bits that it has.
    on_cpu = logits.device.type == "cpu"
    above = logits.numpy() > threshold if on_cpu else (logits > threshold).cpu().numpy()
    return np.packbits(above, axis=-1)


def unpack(packed: np.ndarray, width: int) -> np.ndarray:
    """Masks uint8 `[..., H, W]` of packed masks."""
    return np.unpackbits(packed, axis=-1, count=width)


def pixel_counts(packed: np.ndarray) -> np.ndarray:
    """Areas int64 `[n]` of packed masks."""
    return np.bitwise_count(packed).sum((-2, -1), dtype=np.int64)


def tight_boxes(packed: np.ndarray, width: int) -> np.ndarray:
    """Boxes float32 `[n, 4]` around packed masks.

    In the convention of `weaksam_jax.boxes`: x2 and y2 are the last column and row plus one. The
    box of an empty mask is zero.
    """
    rows = packed.any(-1)
    columns = unpack(np.bitwise_or.reduce(packed, axis=-2), width).astype(bool)
    filled = rows.any(-1)
    x1, y1 = columns.argmax(-1), rows.argmax(-1)
    x2 = width - columns[:, ::-1].argmax(-1)
    y2 = rows.shape[-1] - rows[:, ::-1].argmax(-1)
    return np.stack([x1, y1, x2, y2], -1).astype(np.float32) * filled[:, None]


def stability_scores(core: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """float32 `[n]`: pixels of the packed masks `core` (high threshold) over those of `reach`.

    Equal to `segment_anything.utils.amg.calculate_stability_score`; NaN where both are empty.
    """
    with np.errstate(invalid="ignore"):
        return pixel_counts(core).astype(np.float32) / pixel_counts(reach).astype(np.float32)


def measure(logits: Tensor, threshold: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes float32 `[n, 4]` and stability float32 `[n]` of masks.

    logits: `[n, H, W]`; the mask is logit > threshold, its stability that of threshold +- offset
    (see `tight_boxes`, `stability_scores`). Counted where the logits are: as bits on a CPU, by
    tensor operations on a GPU, which sends a few numbers a mask.
    """
    by = measure_bits if logits.device.type == "cpu" else measure_tensors
    return by(logits, threshold, offset)


def measure_bits(logits: Tensor, threshold: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """`measure` by packed masks."""
    boxes = tight_boxes(pack_above(logits, threshold), logits.shape[-1])
    core, reach = pack_above(logits, threshold + offset), pack_above(logits, threshold - offset)
    return boxes, stability_scores(core, reach)


def measure_tensors(
    logits: Tensor, threshold: float, offset: float
) -> tuple[np.ndarray, np.ndarray]:
    """`measure` by tensor operations on the device of the logits."""
    height, width = logits.shape[-2:]
    above = logits > threshold
    rows, columns = above.any(2), above.any(1)
    y, x = (torch.arange(side, device=logits.device) for side in (height, width))
    corners = [
        torch.where(columns, x, width).amin(1),
        torch.where(rows, y, height).amin(1),
        torch.where(columns, x + 1, 0).amax(1),
        torch.where(rows, y + 1, 0).amax(1),
    ]
    boxes = torch.stack(corners, 1).float() * rows.any(1)[:, None]
    core, reach = ((logits > threshold + way).sum((1, 2)) for way in (offset, -offset))
    return boxes.cpu().numpy(), (core.float() / reach.float()).cpu().numpy()


def rle_above(logits: Tensor, threshold: float) -> tuple[bytes, ...]:
    """COCO compressed RLE (`counts`) of the masks logits `[n, H, W]` > threshold.

    Runs are found where the logits are: of packed bits on a CPU, by tensor operations on a GPU.
    """
    if logits.device.type == "cpu":
        return encode_rle(pack_above(logits, threshold), logits.shape[-1])
    return encode_rle_tensors(logits > threshold)


def encode_rle_tensors(masks: Tensor) -> tuple[bytes, ...]:
    """`encode_rle` of bool masks `[n, H, W]`; only the places where a run begins leave the GPU."""
    count, height, width = masks.shape
    columns = masks.mT.flatten(1)  # COCO counts down the columns, first the zeros
    before = torch.cat([columns.new_zeros(count, 1), columns[:, :-1]], 1)
    row, place = (one.cpu().numpy() for one in (columns ^ before).nonzero(as_tuple=True))
    begins = np.split(place, np.searchsorted(row, np.arange(1, count)))
    rles = []
    for own in begins[:count]:
        runs = np.diff(own, prepend=0, append=height * width)
        plain = {"size": [height, width], "counts": runs.tolist()}
        rles.append(coco_mask.frPyObjects(plain, height, width)["counts"])
    return tuple(rles)


def encode_rle(packed: np.ndarray, width: int) -> tuple[bytes, ...]:
    """COCO compressed RLE (`counts`) of packed masks `[n, H, ceil(W / 8)]`."""
    return tuple(
        coco_mask.encode(np.asfortranarray(unpack(one, width)))["counts"] for one in packed
    )
