"""Prompts to proposals: one encoding of the image, all prompts in batches, boxes of the masks."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bridge.proposals.packed_masks import measure, rle_above
from bridge.proposals.prompts import Prompts
from bridge.sam.load import EncoderType, PromptedImage, Sam
from bridge.torchvision_ops import nms
from weaksam_jax.data.store import SOURCES, DecodedMasks, Proposals
from weaksam_jax.errors import BadInput

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

    keep_decoded: store every decoded mask's box and scores too, so that `rederive` makes the
    proposals of other settings without SAM (22 bytes a mask). encoder_dtype: see `PromptedImage`.
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
    keep_decoded: bool = False
    encoder_dtype: EncoderType = "float32"

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

    Memory, besides the networks: with masks 4 h w bytes a decoded mask of h x w logits until the
    choice is made (published SAMs, h = w = 256: 0.27 MB, so 0.84 GB for 1024 + 50 prompts of three
    masks, whatever the size of the image), and the tensors of one pass, see
    `bridge.sam.decoder.numbers_at_once`.
    """
    prompted = PromptedImage(sam, image, settings.encoder_dtype)
    table, logits = _decode_all(prompted, prompts, settings)
    index = choose(table, settings)
    masks = _encode_masks(prompted, [logits[i] for i in index]) if settings.with_masks else None
    decoded = _compact(table, image.shape, settings) if settings.keep_decoded else None
    height, width = image.shape[:2]
    chosen = _select(table, index)
    return Proposals(
        image_id, height, width, masks=masks, points=prompts.points, decoded=decoded, **chosen
    )


def rederive(
    proposals: Proposals, settings: ProposalSettings, sources: Collection[str] = SOURCES
) -> Proposals:
    """The proposals that `propose` makes with other settings and sources, without running SAM.

    proposals: made with `keep_decoded`. settings: every threshold, NMS, `peak_tokens` and the
    measures that are not in the paper may differ; those of the networks (encoder_dtype, chunk)
    are those of `proposals`. sources: prompts of these alone (a row of the paper's Table 4). The
    result has neither masks nor decoded masks. Raises `BadInput` when `proposals` has no decoded
    masks, or stability was measured with another offset.
    """
    name = f"proposals of image {proposals.image_id}"
    if proposals.decoded is None:
        raise BadInput(name, "hold no decoded masks", "export them again with keep_decoded")
    table = dict(vars(proposals.decoded))
    offset = table.pop("stability_offset")
    if offset != settings.stability_offset:
        problem = f"have their stability at offset {offset}, not {settings.stability_offset}"
        raise BadInput(name, problem, "export them again with the other offset")
    table["boxes"] = table["boxes"].astype(np.float32)
    wanted = [SOURCES.index(source) for source in sources]
    table = _select(table, np.flatnonzero(np.isin(table["source"], wanted)))
    kept_points = np.isin(proposals.points[:, 4], wanted)
    number = np.append(np.cumsum(kept_points) - 1, -1)  # old -> new; -1 stays -1
    table["prompt"] = number[table["prompt"]].astype(np.int32)
    return replace(
        proposals,
        masks=None,
        points=proposals.points[kept_points],
        decoded=None,
        **_select(table, choose(table, settings)),
    )


def choose(table: dict[str, np.ndarray], settings: ProposalSettings) -> np.ndarray:
    """Indices of the proposals among decoded masks, in the order that `propose` documents.

    table: the columns of `weaksam_jax.data.store.DecodedMasks` (boxes float32), in prompt order.
    """
    index = np.flatnonzero(_passes(table, settings))
    index = index[_per_source_nms(_select(table, index), settings)]
    return index[reduce_boxes(_select(table, index), settings)]


def _passes(table: dict[str, np.ndarray], settings: ProposalSettings) -> np.ndarray:
    """Which masks are not empty and pass the filters of their source."""
    filled = table["boxes"][:, 2] > 0
    with np.errstate(invalid="ignore"):  # stability may be 0/0, which is no match
        good = (table["predicted_iou"] > settings.t_iou) & (table["stability"] >= settings.t_stab)
    asked = np.isin(table["token"], np.asarray(settings.peak_tokens) + 1)
    return filled & np.where(table["source"] == GRID, good, asked)


def _decode_all(
    prompted: PromptedImage, prompts: Prompts, settings: ProposalSettings
) -> tuple[dict[str, np.ndarray], list[Tensor]]:
    """Columns of all decoded masks, by source in prompt order; `with_masks`: logits `[h, w]` too.

    A pass takes prompts with equally many points (SAM has no padding that changes nothing), those
    of one point whatever their source. Without `keep_decoded`, masks that cannot be chosen are not
    looked at.
    """
    singles = [(point[None], GRID, -1) for point in prompts.grid]
    singles += [(p[None, :2], int(p[4]), index) for index, p in enumerate(prompts.points)]
    batches = defaultdict(list, {1: singles})  # points a prompt -> [(coordinates, source, index)]
    for _, source, members in prompts.groups:
        batches[len(members)].append((prompts.points[members, :2], source, -1))
    parts, logits = [_empty()], []
    for _, batch in sorted(batches.items()):
        for start in range(0, len(batch), settings.chunk):
            columns, chosen = _decode(
                prompted, *map(np.stack, zip(*batch[start : start + settings.chunk], strict=True)),
                settings,
            )  # fmt: skip
            parts.append(columns)
            logits += chosen if settings.with_masks else []
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(table["source"], kind="stable")
    return _select(table, order), [logits[i] for i in order] if settings.with_masks else []


def _empty() -> dict[str, np.ndarray]:
    return {
        "boxes": np.zeros((0, 4), np.float32),
        "source": np.zeros(0, np.uint8),
        "prompt": np.zeros(0, np.int32),
        "token": np.zeros(0, np.uint8),
        "predicted_iou": np.zeros(0, np.float32),
        "stability": np.zeros(0, np.float32),
    }


def _select(table: dict[str, np.ndarray], index: np.ndarray) -> dict[str, np.ndarray]:
    return {name: column[index] for name, column in table.items()}


def _decode(
    prompted: PromptedImage,
    points: np.ndarray,
    source: np.ndarray,
    index: np.ndarray,
    settings: ProposalSettings,
) -> tuple[dict[str, np.ndarray], Tensor]:
    """Columns and logits of the masks of prompts `[B, n, 2]` of sources `[B]`.

    Unless all are to be kept, only masks that may be chosen are upsampled. (All three are decoded
    all the same: it costs next to nothing, and other shapes would have other last bits.)
    """
    logits, predicted_iou = prompted.decode(points=points)
    scores = predicted_iou.cpu().numpy()
    if settings.keep_decoded:
        wanted = np.ones(scores.shape, bool)
    else:
        asked = np.isin(range(3), settings.peak_tokens)
        wanted = np.where(source[:, None] == GRID, scores > settings.t_iou, asked)
    row, column = np.nonzero(wanted)
    chosen = logits[torch.from_numpy(row), torch.from_numpy(column)]
    measured = [
        measure(prompted.upsample(part), prompted.sam.mask_threshold, settings.stability_offset)
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


def _compact(
    table: dict[str, np.ndarray], size: tuple[int, ...], settings: ProposalSettings
) -> DecodedMasks:
    whole = np.uint16 if max(size) < 2**16 else np.int32
    boxes = table["boxes"].astype(whole)
    return DecodedMasks(**{**table, "boxes": boxes}, stability_offset=settings.stability_offset)


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
