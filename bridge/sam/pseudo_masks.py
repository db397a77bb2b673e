"""Pseudo masks: SAM prompted by the boxes of the pseudo ground truth (section 3.3 of the paper)."""

import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from bridge.runtime.workers import for_images
from bridge.sam.networks import Sam
from bridge.sam.packed_masks import encode_rle, pack_above, pixel_counts
from bridge.sam.prompting import PromptedImage
from bridge.weights.fingerprints import weights_fingerprint
from weaksam_jax.boxes import clip, from_xywh
from weaksam_jax.data.detections import BadDetections, annotation_arrays
from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.files import fingerprint, read_json, write_json
from weaksam_jax.ranges import Batch, Settings
from weaksam_jax.settings import to_plain


@dataclass(frozen=True)
class MaskConfig(Settings):
    """How a box becomes a mask (neither the paper nor the official code says)."""

    best_of_three: bool = False
    """Of SAM's three masks the one of highest predicted IoU; else the single mask, which SAM
    advises for prompts that are not ambiguous."""
    clip_to_box: bool = False
    """Pixels outside of the box are cleared."""
    empty: Literal["drop", "box"] = "drop"
    """What becomes of a box whose mask is empty: drop it (and count), or fill the box."""
    chunk: Batch = 64
    """Prompts per pass of the decoder."""


@dataclass(frozen=True)
class MaskReport:
    """masks: annotations written. empty: boxes whose mask was empty (dropped or filled)."""

    masks: int
    empty: int


def pseudo_masks(
    sam: Sam,
    pgt: dict[str, Any],
    images: TagSplit,
    config: MaskConfig,
    out_path: str | Path,
    progress: bool = True,
    workers: int | None = None,
) -> MaskReport:
    """Writes a COCO annotation file with a mask for every box of `pgt`.

    pgt: a COCO dictionary (`images`, `annotations` with bbox xywh, `categories`). images: where the
    image files are; tags are not looked at. Every annotation keeps its keys (id, bbox, category_id,
    score, ...) and gets segmentation (RLE, counts as text), area of the mask, iscrowd 0 and
    predicted_iou; the key `info` says how. Finished images are kept beside the file in
    `<name>.parts` until the whole file is written, so a killed run goes on where it stopped.
    workers: images at a time (`bridge.runtime.workers`); the file does not depend on it.
    Raises `BadDetections` when the dictionary does not belong to the split
    (`weaksam_jax.data.detections.naming` names its file), `BadInput` when an image cannot be read.
    """
    out_path = Path(out_path)
    table, boxes = annotation_arrays(pgt, images), defaultdict(list)
    shown, categories = _list(pgt, "images"), _list(pgt, "categories")
    for row, place in enumerate(table.image.tolist()):
        boxes[place].append(pgt["annotations"][row] | {"bbox": table.xywh[row].tolist()})
    info = {"sam": weights_fingerprint(sam), **to_plain(config)}
    parts = out_path.with_name(f"{out_path.name}.parts")

    def one(place: int) -> dict[str, Any]:
        record = images.records[place]
        return _one_image(sam, record, boxes[place], config=config, info=info, parts=parts)

    found = for_images(sam, workers)(one, sorted(boxes), "masks", progress=progress)
    annotations = [annotation for part in found for annotation in part["annotations"]]
    empty = sum(part["empty"] for part in found)
    masked = {"info": info, "images": shown, "annotations": annotations, "categories": categories}
    write_json(out_path, masked)
    shutil.rmtree(parts, ignore_errors=True)
    return MaskReport(len(annotations), empty)


def _list(pgt: dict[str, Any], name: str) -> list:
    if isinstance(pgt.get(name), list):
        return pgt[name]
    raise BadDetections(f"has no list of {name}", "make the pseudo boxes again")


def _one_image(
    sam: Sam,
    record: TagRecord,
    annotations: list[dict[str, Any]],
    config: MaskConfig,
    info: dict[str, Any],
    parts: Path,
) -> dict[str, Any]:
    """One image's annotations with masks, from `parts` when they were made from the same things."""
    path = parts / f"{record.image_id % 100:02d}" / f"{record.image_id}.json"
    key = fingerprint([info, annotations])
    if path.exists():
        stored = read_json(path)
        if _is_part(stored, key):
            return stored
    image = load_image(record.path)
    boxes = from_xywh(np.asarray([one["bbox"] for one in annotations], np.float32))
    packed, predicted_iou, empty = box_masks(sam, image, boxes, config=config)
    height, width = image.shape[:2]
    masked = []
    rles, areas = encode_rle(packed, width), pixel_counts(packed)
    for annotation, rle, area, score in zip(annotations, rles, areas, predicted_iou, strict=True):
        if area:
            segmentation = {"size": [height, width], "counts": rle.decode("ascii")}
            added = {"segmentation": segmentation, "area": int(area), "iscrowd": 0}
            masked.append({**annotation, **added, "predicted_iou": round(float(score), 5)})
    result = {"key": key, "annotations": masked, "empty": int(empty.sum())}
    write_json(path, result)
    return result


def _is_part(stored: Any, key: str) -> bool:
    """Whether a stored part is of this key and whole."""
    whole = isinstance(stored, dict) and isinstance(stored.get("annotations"), list)
    return whole and stored.get("key") == key and type(stored.get("empty")) is int


def box_masks(
    sam: Sam, image: np.ndarray, boxes: np.ndarray, config: MaskConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks of boxes float32 `[n, 4]` (see `weaksam_jax.boxes`) in an image uint8 `[H, W, 3]`.

    Returns packed masks uint8 `[n, H, ceil(W / 8)]` (`bridge.sam.packed_masks`), predicted IoU
    float32 `[n]` and a bool `[n]`: SAM's mask was empty (it stays so unless `config.empty` is
    "box").
    """
    height, width = image.shape[:2]
    prompted = PromptedImage(sam, image)
    boxes = clip(boxes, width, height)
    # SAM's box prompt names the pixels at the corners, which are inside.
    corners = boxes - np.asarray([0, 0, 1, 1], np.float32)
    packed = np.zeros((len(boxes), height, -(-width // 8)), np.uint8)
    scores = np.zeros(len(boxes), np.float32)
    for start in range(0, len(boxes), config.chunk):
        here = slice(start, start + config.chunk)
        logits, predicted_iou = prompted.decode(
            boxes=corners[here], tokens=(1, 2, 3) if config.best_of_three else (0,)
        )
        best = predicted_iou.argmax(1)
        rows = torch.arange(len(best), device=best.device)
        scores[here] = predicted_iou[rows, best].cpu().numpy()
        chosen, step = logits[rows, best], prompted.upsample_step()
        for first in range(0, len(chosen), step):
            full = prompted.upsample(chosen[first : first + step])
            place = start + first
            packed[place : place + len(full)] = pack_above(full, sam.mask_threshold)
    inside = _rectangles(boxes, height, width)
    if config.clip_to_box:
        packed &= inside
    empty = ~packed.any((1, 2))
    if config.empty == "box":
        packed[empty] = inside[empty]
    return packed, scores, empty


def _rectangles(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Packed masks of all pixels that a box `[n, 4]` touches."""
    x, y = np.arange(width), np.arange(height)
    columns = (x + 1 > boxes[:, :1]) & (x < boxes[:, 2:3])
    rows = (y + 1 > boxes[:, 1:2]) & (y < boxes[:, 3:])
    return rows[:, :, None] * np.packbits(columns, axis=-1)[:, None, :]
