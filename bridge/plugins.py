"""The frozen networks of a run, for `weaksam_jax.load`, which finds them as entry points."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from bridge.clues.networks import ClueConfig, load_clues
from bridge.sam.networks import load_sam
from bridge.sam.packed_masks import unpack
from bridge.sam.pseudo_masks import MaskConfig, box_masks
from weaksam_jax.data.detections import category_ids
from weaksam_jax.errors import BadFile
from weaksam_jax.run_folder import RunFolder
from weaksam_jax.settings import from_plain


def masks(settings: Mapping) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """SAM as the settings.json of a run names it: (image uint8 `[H, W, 3]`, boxes float32
    `[n, 4]`) -> masks bool `[n, H, W]`; a box that SAM leaves empty is its own mask."""
    sam, how = load_sam(settings["settings"]["sam"]), MaskConfig(empty="box")

    def prompt(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        packed, _, _ = box_masks(sam, image, boxes, config=how)
        return unpack(packed, image.shape[1]).astype(bool)

    return prompt


def tags(
    folder: RunFolder, settings: Mapping, classes: Sequence[str]
) -> Callable[[np.ndarray], np.ndarray]:
    """The clue network of a run: image uint8 `[H, W, 3]` -> logits float32 `[C]`."""
    chosen = settings["settings"]
    own = {"weaktr": "weaktr", "weaktr_paper": "weaktr", "lite_cam": "lite_cam"}
    name = chosen["clues"]
    path = folder.clue_network(own[name]) if name in own else Path(name)
    if not path.exists():
        raise BadFile(path, "does not exist", "finish the run's stage clues")
    use = from_plain(ClueConfig, chosen["clue_use"], folder.settings)
    ids = category_ids(folder.pseudo_boxes(), classes)
    network = load_clues(path, tuple(classes), ids, config=use)
    return lambda image: network(image, None).class_logits
