"""Named settings from a photo to its proposals, by data set and source of truth.

`<data set>-paper` is what the paper says, `<data set>-official` what the official code's commands
do (docs/provenance/proposals.md, sections 2.3 and 4). Both mean a DeiT-S WeakTr and SAM ViT-H. What
they share: three scales with their mirrored twins, threshold 0.9 on min-max normalised maps, at
most 25 peaks per map, a 32 x 32 grid with predicted IoU > .3, stability >= .3 and NMS .3, the last
two of SAM's three masks of a peak, NMS .9 of cross boxes.

Whoever compares test figures should know (section 7 there): WeakTr's published checkpoints were
trained on the tags of 106 images that are also in VOC2007's test split, and chosen by pixel masks.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bridge.clues.interface import ClueNetwork
from bridge.clues.networks import ClueConfig, load_clues
from bridge.proposals.prompts import PromptConfig
from bridge.proposals.selection import ProposalConfig
from weaksam_jax.data.records import TagSplit

PresetName = Literal[
    *("paper", "official", "mini", "light"),
    *("voc07-paper", "voc07-official", "voc12-paper", "voc12-official"),
    *("coco14-paper", "coco14-official"),
]


@dataclass(frozen=True)
class Preset:
    """Settings that belong together, each as in its own class.

    difficult_tags: classes of difficult objects are asked of the clue network, too, as in the
    official code's labels (the MIL detector's tags leave them out).
    """

    prompts: PromptConfig
    proposals: ProposalConfig
    clue_use: ClueConfig = field(default_factory=ClueConfig)
    difficult_tags: bool = False


# The paper has one setting for all data sets. It speaks of all layers and clustered points; its
# numbers of boxes (Table 4) and the names of the official files fit layers 5 to 12.
_LAYERS_5_TO_12 = tuple(range(4, 12))
_PAPER = Preset(
    PromptConfig.paper(),
    ProposalConfig.paper(),
    ClueConfig(cross_layers=_LAYERS_5_TO_12),
    difficult_tags=True,
)
# Official code: layers 9 and 10, and a fusion whose weights never fit its own checkpoint, which
# amounts to a plain mean. The VOC07 commands prompt SAM with all cross points, the VOC12 ones with
# their cluster centres. For COCO14 there are only the names of its point files: layers 5 to 12.
_OFFICIAL_USE = ClueConfig(fusion="uniform", cross_layers=(8, 9))
_VOC07 = Preset(PromptConfig.official(), ProposalConfig.paper(), _OFFICIAL_USE, difficult_tags=True)
_VOC12 = Preset(PromptConfig(), ProposalConfig.paper(), _OFFICIAL_USE, difficult_tags=True)
_COCO14 = Preset(
    PromptConfig(),
    ProposalConfig.paper(),
    ClueConfig(fusion="uniform", cross_layers=_LAYERS_5_TO_12),
)

PRESETS: dict[str, Preset] = {
    "paper": _PAPER,
    "official": _VOC07,
    "voc07-paper": _PAPER,
    "voc12-paper": _PAPER,
    "coco14-paper": _PAPER,
    "voc07-official": _VOC07,
    "voc12-official": _VOC12,
    "coco14-official": _COCO14,
    "mini": Preset(PromptConfig.mini(), ProposalConfig.mini()),
    "light": Preset(PromptConfig(grid_side=16), ProposalConfig.light()),
}


def preset_of_sam(sam: str) -> PresetName:
    """The preset meant for a SAM (name or path): the paper's for a published one."""
    return {"sam_mini": "mini", "sam_mini_lite": "light"}.get(sam, "paper")


def clue_network(path: Path, preset: PresetName, split: TagSplit) -> ClueNetwork:
    """The clue network of a weights file with a preset's settings, for the classes of a split.

    Raises `BadInput` for a file that is no clue network or one of other classes.
    """
    return load_clues(path, split.classes, split.category_ids, config=PRESETS[preset].clue_use)
