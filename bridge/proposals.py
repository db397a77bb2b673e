"""Prompts to proposals: one encoding of the image, all prompts in batches, boxes of the masks."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bridge.packed_masks import encode_rle, pack_above, stability_scores, tight_boxes
from bridge.prompts import Prompts
from bridge.sam import PromptedImage, Sam
from bridge.torchvision_ops import nms
from weaksam_jax.data.store import SOURCES, Proposals

GRID, CROSS = SOURCES.index("grid"), SOURCES.index("cross")


@dataclass(frozen=True)
class ProposalSettings:
    """How masks become proposals (the defaults are the paper's and the released code's).

    t_iou, t_stab: a grid mask stays with predicted IoU > t_iou and stability >= t_stab at a logit
    offset of stability_offset. grid_nms: NMS of grid boxes by predicted IoU. peak_tokens: which of
    SAM's three masks of a clue prompt stay. cross_nms: greedy NMS of cross boxes in prompt order.
    chunk: prompts a decoder pass.

    Not in the paper (None: off). dedupe_nms: NMS over all sources together, by predicted IoU, for
    near duplicates.
    max_boxes: most boxes an image, see `cap`. clue_share: part of them that clue boxes may take.
    min_side: least width and height in pixels. with_masks: store the RLE masks.
    """

    t_iou: float = 0.3
    t_stab: float = 0.3
    stability_offset: float = 1.0
    grid_nms: float = 0.3
    peak_tokens: tuple[int, ...] = (1, 2)
    cross_nms: float | None = 0.9
    chunk: int = 64
    dedupe_nms: float | None = None
    max_boxes: int | None = None
    clue_share: float = 0.5
    min_side: float = 0.0
    with_masks: bool = True

    @classmethod
    def paper(cls) -> "ProposalSettings":
        """SAM ViT-H as in the paper and the released code; no cap, no further NMS."""
        return cls()

    @classmethod
    def mini(cls) -> "ProposalSettings":
        """`sam_mini` on images of at most 192 pixels: at most 100 boxes.

        Small SAMs have flat logits and low predicted IoU; thresholds made for ViT-H would empty the
        grid, so masks are ranked and capped instead.
        """
        return cls(
            t_iou=0.1,
            t_stab=0.0,
            grid_nms=0.7,
            min_side=4,
            dedupe_nms=0.9,
            max_boxes=100,
            clue_share=0.3,
        )

    @classmethod
    def light(cls) -> "ProposalSettings":
        """`sam_mini_lite` on photographs: at most 250 boxes, ranked as in `mini`."""
        return cls(t_iou=0.1, t_stab=0.0, grid_nms=0.7, min_side=10, dedupe_nms=0.9, max_boxes=250)


def propose(
    sam: Sam, image: np.ndarray, prompts: Prompts, settings: ProposalSettings, image_id: int = 0
) -> Proposals:
    """The proposals of one image (section 3.2 of the paper; released code where it is silent).

    image: uint8 RGB `[H, W, 3]`. Grid points give three masks each, filtered by predicted IoU,
    stability and NMS; coarse, fine and cross points give the masks `peak_tokens`, unfiltered, and
    so does every class-wise group of points. Order: grid by falling predicted IoU, then coarse,
    fine (points, then groups) and cross in prompt order. Empty masks are dropped. Grid boxes have
    prompt -1, as those of groups. NMS of grid boxes measures IoU between pixel indices (no +1), as
    `SamAutomaticMaskGenerator`; every other NMS in this project's box convention.
    """
    table = _decode_all(PromptedImage(sam, image), prompts, settings)
    table = _select(table, _per_source_nms(table, settings))
    table = _select(table, reduce_boxes(table, settings))
    packed, (height, width) = table.pop("packed"), image.shape[:2]
    masks = encode_rle(packed, width) if settings.with_masks else None
    return Proposals(image_id, height, width, masks=masks, points=prompts.points, **table)


def _decode_all(
    prompted: PromptedImage, prompts: Prompts, settings: ProposalSettings
) -> dict[str, np.ndarray]:
    """All masks that pass the filters of their source, as columns; rows in prompt order."""
    batches = defaultdict(list)  # points a prompt -> (coordinates [n, 2], source, point index)
    for point in prompts.grid:
        batches[1].append((point[None], GRID, -1))
    for index, point in enumerate(prompts.points):
        batches[1].append((point[None, :2], int(point[4]), index))
    for _, source, members in prompts.groups:
        batches[len(members)].append((prompts.points[members, :2], source, -1))
    parts = [_empty(prompted.size)]
    for _, group in sorted(batches.items()):
        for start in range(0, len(group), settings.chunk):
            coordinates, source, index = zip(*group[start : start + settings.chunk], strict=True)
            parts += _decode(
                prompted, np.stack(coordinates), np.asarray(source), np.asarray(index), settings
            )
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return _select(table, np.argsort(table["source"], kind="stable"))


def _empty(size: tuple[int, int]) -> dict[str, np.ndarray]:
    return {
        "boxes": np.zeros((0, 4), np.float32),
        "source": np.zeros(0, np.uint8),
        "prompt": np.zeros(0, np.int32),
        "token": np.zeros(0, np.uint8),
        "predicted_iou": np.zeros(0, np.float32),
        "stability": np.zeros(0, np.float32),
        "packed": np.zeros((0, size[0], -(-size[1] // 8)), np.uint8),
    }


def _select(table: dict[str, np.ndarray], index: np.ndarray) -> dict[str, np.ndarray]:
    return {name: column[index] for name, column in table.items()}


def _decode(
    prompted: PromptedImage,
    points: np.ndarray,
    source: np.ndarray,
    index: np.ndarray,
    settings: ProposalSettings,
) -> list[dict[str, np.ndarray]]:
    """Decodes prompts `[B, n, 2]`; upsamples only masks that the predicted IoU lets through."""
    logits, predicted_iou = prompted.decode(points=points)
    scores = predicted_iou.cpu().numpy()
    is_grid = (source == GRID)[:, None]
    peak = np.isin(np.arange(scores.shape[1]), settings.peak_tokens)
    row, token = np.nonzero(np.where(is_grid, scores > settings.t_iou, peak[None]))
    chosen = logits[torch.from_numpy(row), torch.from_numpy(token)]
    parts, step = [], prompted.upsample_step()
    for start in range(0, len(chosen), step):
        here = slice(start, start + step)
        columns = _measure(prompted, chosen[here], settings.stability_offset)
        good = columns.pop("filled")
        with np.errstate(invalid="ignore"):  # the stability of an empty mask is 0/0, and no match
            stable = columns["stability"] >= settings.t_stab
        good &= stable | ~is_grid[row[here], 0]
        columns |= {
            "source": source[row[here]].astype(np.uint8),
            "prompt": index[row[here]].astype(np.int32),
            "token": (token[here] + 1).astype(np.uint8),
            "predicted_iou": scores[row[here], token[here]],
        }
        parts.append(_select(columns, good))
    return parts


def _measure(prompted: PromptedImage, logits: Tensor, offset: float) -> dict[str, np.ndarray]:
    """Boxes, stability and packed masks of low-resolution logits `[n, h, w]`."""
    full, threshold = prompted.upsample(logits), prompted.sam.mask_threshold
    packed = pack_above(full, threshold)
    boxes, filled = tight_boxes(packed, prompted.size[1])
    core, reach = pack_above(full, threshold + offset), pack_above(full, threshold - offset)
    stability = stability_scores(core, reach)
    return {"boxes": boxes, "filled": filled, "stability": stability, "packed": packed}


def _per_source_nms(table: dict[str, np.ndarray], settings: ProposalSettings) -> np.ndarray:
    """Indices that survive the NMS of their own source, in the order that `propose` documents."""
    source, boxes = table["source"], table["boxes"]
    grid, cross = np.flatnonzero(source == GRID), np.flatnonzero(source == CROSS)
    others = np.flatnonzero((source != GRID) & (source != CROSS))
    inclusive = boxes[grid] - np.asarray([0, 0, 1, 1], np.float32)
    grid = grid[_nms(inclusive, table["predicted_iou"][grid], settings.grid_nms)]
    if settings.cross_nms is not None:
        listed = -np.arange(len(cross), dtype=np.float32)
        cross = cross[_nms(boxes[cross], listed, settings.cross_nms)]
    return np.concatenate([grid, others, cross])


def _nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    return nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).numpy()


def reduce_boxes(table: dict[str, np.ndarray], settings: ProposalSettings) -> np.ndarray:
    """Ascending indices left by the measures that are not in the paper (all off by default).

    In this order: min_side, dedupe_nms, max_boxes.
    """
    boxes, scores = table["boxes"], table["predicted_iou"]
    is_clue = table["source"] != GRID
    sides = boxes[:, 2:] - boxes[:, :2]
    index = np.flatnonzero((sides >= settings.min_side).all(1))
    if settings.dedupe_nms is not None:
        index = index[np.sort(_nms(boxes[index], scores[index], settings.dedupe_nms))]
    if settings.max_boxes is not None:
        index = index[cap(scores[index], is_clue[index], settings.max_boxes, settings.clue_share)]
    return index


def cap(scores: np.ndarray, is_clue: np.ndarray, most: int, clue_share: float) -> np.ndarray:
    """Ascending indices of at most `most` boxes.

    Clue boxes may take `clue_share * most` places and grid boxes the others, each kind by falling
    predicted IoU (ties: first listed); places that one kind leaves free go to the other.
    """
    ranked = np.argsort(-scores, kind="stable")
    clues, grid = ranked[is_clue[ranked]], ranked[~is_clue[ranked]]
    reserved = min(len(clues), max(round(clue_share * most), most - len(grid)))
    return np.sort(np.concatenate([clues[:reserved], grid[: most - reserved]]))
