"""Which decoded masks become proposals: thresholds, NMS by source, and the cap.

Works on the columns of `weaksam_jax.data.store.DecodedMasks`, so other settings need no second run
of SAM (`rederive`).
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch

from bridge.runtime.torchvision_ops import nms
from bridge.sam.prompting import EncoderType
from weaksam_jax.data.store import SOURCES, Proposals
from weaksam_jax.errors import BadInput
from weaksam_jax.ranges import (
    Amount,
    Batch,
    Count,
    Filled,
    Pixels,
    Settings,
    Share,
    between,
    integers,
)

GRID, CROSS = SOURCES.index("grid"), SOURCES.index("cross")
Table = dict[str, np.ndarray]  # one row per decoded mask


@dataclass(frozen=True)
class ProposalConfig(Settings):
    """How masks become proposals; the defaults are the paper's and the official code's."""

    t_iou: Annotated[float, between(-1000, 1000)] = 0.3
    """A grid mask stays with a predicted IoU above this (SAM estimates it, and not in 0..1)."""
    t_stab: Share = 0.3
    """A grid mask stays with at least this stability."""
    stability_offset: Amount = 1.0
    """Offset of the logits with which stability is measured."""
    grid_nms: Share = 0.3
    """NMS of grid boxes by predicted IoU."""
    peak_tokens: Filled[Annotated[int, integers(0, 2)]] = (1, 2)
    """Which of SAM's three masks of a clue prompt stay."""
    cross_nms: Share | None = 0.9
    """NMS of cross boxes in the order of their prompts."""
    chunk: Batch = 64
    """Prompts per pass of the decoder."""
    dedupe_nms: Share | None = None
    """NMS over all sources together by predicted IoU, for near duplicates; not in the paper."""
    max_boxes: Count | None = None
    """Most boxes per image (`cap`); not in the paper."""
    clue_share: Share = 0.5
    """Part of them that boxes of clues may take."""
    min_side: Pixels = 0.0
    """Least width and height in pixels; not in the paper."""
    with_masks: bool = True
    """Store the masks (RLE)."""
    keep_decoded: bool = False
    """Store every decoded mask's box and scores too, so that `rederive` makes the proposals of
    other thresholds without SAM (22 bytes per mask)."""
    encoder_dtype: EncoderType = "float32"
    """Of SAM's image encoder; the others are faster on a GPU and move some boxes."""

    @classmethod
    def paper(cls) -> "ProposalConfig":
        """SAM ViT-H as in the paper and the official code; no cap, no further NMS."""
        return cls()

    @classmethod
    def mini(cls) -> "ProposalConfig":
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
    def light(cls) -> "ProposalConfig":
        """`sam_mini_lite` on photographs: at most 250 boxes, ranked as in `mini`."""
        return cls(t_iou=0.1, t_stab=0.0, grid_nms=0.7, min_side=10, dedupe_nms=0.9, max_boxes=250)


def select(table: Table, index: np.ndarray) -> Table:
    """Rows of a table."""
    return {name: column[index] for name, column in table.items()}


def rederive(
    proposals: Proposals, config: ProposalConfig, sources: Collection[str] = SOURCES
) -> Proposals:
    """The proposals that `propose` makes with other settings and sources, without running SAM.

    proposals: made with `keep_decoded`. config: every threshold, NMS, `peak_tokens` and the
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
    if offset != config.stability_offset:
        problem = f"have their stability at offset {offset}, not {config.stability_offset}"
        raise BadInput(name, problem, "export them again with the other offset")
    table["boxes"] = table["boxes"].astype(np.float32)
    wanted = [SOURCES.index(source) for source in sources]
    table = select(table, np.flatnonzero(np.isin(table["source"], wanted)))
    kept_points = np.isin(proposals.points[:, 4], wanted)
    number = np.append(np.cumsum(kept_points) - 1, -1)  # old -> new; -1 stays -1
    table["prompt"] = number[table["prompt"]].astype(np.int32)
    return replace(
        proposals,
        masks=None,
        points=proposals.points[kept_points],
        decoded=None,
        **select(table, choose(table, config)),
    )


def choose(table: Table, config: ProposalConfig) -> np.ndarray:
    """Indices of the proposals among decoded masks, in the order that `propose` documents.

    table: the columns of `weaksam_jax.data.store.DecodedMasks` (boxes float32), in prompt order.
    """
    index = np.flatnonzero(_passes(table, config))
    index = index[_per_source_nms(select(table, index), config)]
    return index[reduce_boxes(select(table, index), config)]


def _passes(table: Table, config: ProposalConfig) -> np.ndarray:
    """Which masks are not empty and pass the filters of their source."""
    filled = table["boxes"][:, 2] > 0
    with np.errstate(invalid="ignore"):  # stability may be 0/0, which is no match
        good = (table["predicted_iou"] > config.t_iou) & (table["stability"] >= config.t_stab)
    asked = np.isin(table["token"], np.asarray(config.peak_tokens) + 1)
    return filled & np.where(table["source"] == GRID, good, asked)


def _per_source_nms(table: Table, config: ProposalConfig) -> np.ndarray:
    """Indices that survive the NMS of their own source, in the order that `propose` documents."""
    source, boxes = table["source"], table["boxes"]
    grid, cross = np.flatnonzero(source == GRID), np.flatnonzero(source == CROSS)
    others = np.flatnonzero((source != GRID) & (source != CROSS))
    inclusive = boxes[grid] - np.asarray([0, 0, 1, 1], np.float32)
    grid = grid[_nms(inclusive, table["predicted_iou"][grid], config.grid_nms)]
    if config.cross_nms is not None:
        listed = -np.arange(len(cross), dtype=np.float32)
        cross = cross[_nms(boxes[cross], listed, config.cross_nms)]
    return np.concatenate([grid, others, cross])


def _nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    return nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).numpy()


def reduce_boxes(table: Table, config: ProposalConfig) -> np.ndarray:
    """Ascending indices left by the measures that are not in the paper (all off by default).

    In this order: min_side, dedupe_nms, max_boxes.
    """
    boxes, scores = table["boxes"], table["predicted_iou"]
    is_clue = table["source"] != GRID
    sides = boxes[:, 2:] - boxes[:, :2]
    index = np.flatnonzero((sides >= config.min_side).all(1))
    if config.dedupe_nms is not None:
        index = index[np.sort(_nms(boxes[index], scores[index], config.dedupe_nms))]
    if config.max_boxes is not None:
        index = index[
            cap(scores[index], is_clue[index], config.max_boxes, clue_share=config.clue_share)
        ]
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
