"""Named settings of the whole way from a photo to its proposals, by data set and source of truth.

`<data set>-paper` is what the paper says, `<data set>-release` what the released commands do
(10-clues-and-proposals.md, sections 2.3 and 4). Both mean a DeiT-S WeakTr and SAM ViT-H. What they
share: three scales with their mirrored twins, threshold 0.9 on min-max normalised maps, at most 25
peaks a map, a 32 x 32 grid with predicted IoU > .3, stability >= .3 and NMS .3, the last two of
SAM's three masks of a peak, NMS .9 of cross boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bridge.clues import ClueNetwork
from bridge.prompts import PromptSettings
from bridge.proposals import ProposalSettings
from bridge.weaktr import WeakTrClues, load_weaktr

PresetName = Literal[
    *("paper", "release", "mini", "light"),
    *("voc07-paper", "voc07-release", "voc12-paper", "voc12-release"),
    *("coco14-paper", "coco14-release"),
]
PUBLISHED_DEPTH = 12
VIEWS = (1.0, 0.8, 1.2)


@dataclass(frozen=True)
class Preset:
    """Settings that belong together.

    prompts, proposals: as there. views, cross_layers, fusion: of WeakTr, see `with_preset`; views
    None: a clue network keeps its own. cross_layers: layers whose attention gives cross maps,
    counted from 1 in a network of 12. fusion: as in `load_weaktr`.
    """

    prompts: PromptSettings
    proposals: ProposalSettings
    views: tuple[float, ...] | None = None
    cross_layers: tuple[int, ...] = (9, 10)
    fusion: str = "auto"


# The paper has one setting for all data sets. It speaks of all layers and clustered points; its
# numbers of boxes (Table 4) and the names of the released files fit layers 5 to 12.
_PAPER = Preset(PromptSettings.paper(), ProposalSettings.paper(), VIEWS, tuple(range(5, 13)))
# Released code: layers 9 and 10, and a fusion whose weights never fit its own checkpoint, which
# amounts to a plain mean. The VOC07 commands prompt SAM with all cross points, the VOC12 ones with
# their cluster centres. For COCO14 there are only the names of its point files: layers 5 to 12.
_VOC07 = Preset(PromptSettings.release(), ProposalSettings.paper(), VIEWS, (9, 10), "uniform")
_VOC12 = Preset(PromptSettings(), ProposalSettings.paper(), VIEWS, (9, 10), "uniform")
_COCO14 = Preset(PromptSettings(), ProposalSettings.paper(), VIEWS, tuple(range(5, 13)), "uniform")

PRESETS: dict[str, Preset] = {
    "paper": _PAPER,
    "release": _VOC07,
    "voc07-paper": _PAPER,
    "voc12-paper": _PAPER,
    "coco14-paper": _PAPER,
    "voc07-release": _VOC07,
    "voc12-release": _VOC12,
    "coco14-release": _COCO14,
    "mini": Preset(PromptSettings.mini(), ProposalSettings.mini()),
    "light": Preset(PromptSettings(grid_side=16), ProposalSettings.light()),
}


def preset_of_sam(sam: str) -> PresetName:
    """The preset meant for a SAM (name or path): the paper's for a published one."""
    return {"sam_mini": "mini", "sam_mini_lite": "light"}.get(sam, "paper")


def with_preset(network: ClueNetwork, preset: Preset, path: str | Path) -> ClueNetwork:
    """A WeakTr with the preset's views, cross layers and fusion; other networks as they are.

    path: the weights of `network`, read again where the fusion is another one.
    """
    if preset.views is None or not isinstance(network, WeakTrClues):
        return network
    model = network.model
    if preset.fusion not in ("auto", model.config.fusion):
        model = load_weaktr(path, preset.fusion)
    layers = at_depth(preset.cross_layers, model.config.depth)
    return WeakTrClues(model, preset.views, layers, network.resize_long)


def at_depth(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """Layers 1..12 of the published network as indices 0..depth-1 at the same relative depth."""
    scale = (depth - 1) / (PUBLISHED_DEPTH - 1)
    return tuple(sorted({round((layer - 1) * scale) for layer in layers}))
