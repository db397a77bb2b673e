"""Prompts to proposals: one encoding of the image, all prompts in batches, boxes of the masks."""

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from bridge.proposals.prompts import Prompts
from bridge.proposals.selection import GRID, ProposalConfig, Table, choose, select
from bridge.sam.networks import Sam
from bridge.sam.packed_masks import measure, rle_above
from bridge.sam.prompting import PromptedImage
from weaksam_jax.data.store import DecodedMasks, Proposals


def propose(
    sam: Sam, image: np.ndarray, prompts: Prompts, config: ProposalConfig, image_id: int = 0
) -> Proposals:
    """The proposals of one image (section 3.2 of the paper; official code where it is silent).

    image: uint8 RGB `[H, W, 3]`. Grid points give three masks each, filtered by predicted IoU,
    stability and NMS; coarse, fine and cross points give the masks `peak_tokens`, unfiltered, and
    so does every class-wise group of points. Order: grid by falling predicted IoU, then coarse,
    fine (points, then groups) and cross in prompt order. Empty masks are dropped. Grid boxes have
    prompt -1, as those of groups. NMS of grid boxes measures IoU between pixel indices (no +1), as
    `SamAutomaticMaskGenerator`; every other NMS in this project's box convention.

    Memory, besides the networks: with masks 4 h w bytes per decoded mask of h x w logits until the
    choice is made (published SAMs, h = w = 256: 0.27 MB, so 0.84 GB for 1024 + 50 prompts of three
    masks, whatever the size of the image), and the tensors of one pass, see
    `bridge.sam.decoder.numbers_at_once`.
    """
    prompted = PromptedImage(sam, image, config.encoder_dtype)
    table, logits = _decode_all(prompted, prompts, config)
    index = choose(table, config)
    masks = _encode_masks(prompted, [logits[i] for i in index]) if config.with_masks else None
    decoded = _compact(table, image.shape, config) if config.keep_decoded else None
    height, width = image.shape[:2]
    chosen = select(table, index)
    return Proposals(
        image_id, height, width, masks=masks, points=prompts.points, decoded=decoded, **chosen
    )


def _decode_all(
    prompted: PromptedImage, prompts: Prompts, config: ProposalConfig
) -> tuple[Table, list[Tensor]]:
    """Columns of all decoded masks, by source in prompt order; `with_masks`: logits `[h, w]` too.

    A pass takes prompts with equally many points (SAM has no padding that changes nothing), those
    of one point whatever their source. Without `keep_decoded`, masks that cannot be chosen are not
    looked at.
    """
    singles = [(point[None], GRID, -1) for point in prompts.grid]
    singles += [(p[None, :2], int(p[4]), index) for index, p in enumerate(prompts.points)]
    batches = defaultdict(list, {1: singles})  # points per prompt -> [(coordinates, source, index)]
    for _, source, members in prompts.groups:
        batches[len(members)].append((prompts.points[members, :2], source, -1))
    parts, logits = [_empty()], []
    for _, batch in sorted(batches.items()):
        for start in range(0, len(batch), config.chunk):
            here = zip(*batch[start : start + config.chunk], strict=True)
            points, source, index = map(np.stack, here)
            columns, chosen = _decode(prompted, points, source=source, index=index, config=config)
            parts.append(columns)
            logits += chosen if config.with_masks else []
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(table["source"], kind="stable")
    return select(table, order), [logits[i] for i in order] if config.with_masks else []


def _empty() -> Table:
    return {
        "boxes": np.zeros((0, 4), np.float32),
        "source": np.zeros(0, np.uint8),
        "prompt": np.zeros(0, np.int32),
        "token": np.zeros(0, np.uint8),
        "predicted_iou": np.zeros(0, np.float32),
        "stability": np.zeros(0, np.float32),
    }


def _decode(
    prompted: PromptedImage,
    points: np.ndarray,
    source: np.ndarray,
    index: np.ndarray,
    config: ProposalConfig,
) -> tuple[Table, Tensor]:
    """Columns and logits of the masks of prompts `[B, n, 2]` of sources `[B]`.

    Unless all are to be kept, only masks that may be chosen are upsampled. (All three are decoded
    all the same: it costs next to nothing, and other shapes would have other last bits.)
    """
    logits, predicted_iou = prompted.decode(points=points)
    scores = predicted_iou.cpu().numpy()
    if config.keep_decoded:
        wanted = np.ones(scores.shape, bool)
    else:
        asked = np.isin(range(3), config.peak_tokens)
        wanted = np.where(source[:, None] == GRID, scores > config.t_iou, asked)
    row, column = np.nonzero(wanted)
    chosen = logits[torch.from_numpy(row), torch.from_numpy(column)]
    measured = [
        measure(prompted.upsample(part), prompted.sam.mask_threshold, config.stability_offset)
        for part in chosen.split(prompted.upsample_step())
    ]
    boxes, stability = (np.concatenate(values) for values in zip(*measured, strict=True))
    columns = {
        "boxes": boxes,
        "source": source[row].astype(np.uint8),
        "prompt": index[row].astype(np.int32),
        "token": (column + 1).astype(np.uint8),
        "predicted_iou": scores[row, column],
        "stability": stability,
    }
    return columns, chosen


def _encode_masks(prompted: PromptedImage, logits: list[Tensor]) -> tuple[bytes, ...]:
    """RLE of the masks of low-resolution logits `[h, w]`."""
    rles, step = (), prompted.upsample_step()
    for start in range(0, len(logits), step):
        full = prompted.upsample(torch.stack(logits[start : start + step]))
        rles += rle_above(full, prompted.sam.mask_threshold)
    return rles


def _compact(table: Table, size: tuple[int, ...], config: ProposalConfig) -> DecodedMasks:
    whole = np.uint16 if max(size) < 2**16 else np.int32
    boxes = table["boxes"].astype(whole)
    return DecodedMasks(**{**table, "boxes": boxes}, stability_offset=config.stability_offset)
