"""A clue network's outputs and a data set's classes: equal, or COCO's 90 outputs for 80 classes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bridge.checkpoints import network_fingerprint
from bridge.clues import ClueNetwork, Clues
from weaksam_jax.data.records import TagSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.files import fingerprint

# Published COCO clue networks have an output for each id 1..90, ten of which no object has.
COCO_SLOTS = 90


def for_classes(network: ClueNetwork, split: TagSplit, path: str | Path) -> ClueNetwork:
    """`network` with its outputs in the order of the split's classes.

    A network of as many outputs as the split has classes is returned as it is; one of 90 is mapped
    through COCO's category ids (output = category id - 1). Raises `BadInput` with `path` for any
    other number.
    """
    outputs, classes = output_count(network), len(split.classes)
    if outputs == classes:
        return network
    if outputs == COCO_SLOTS and max(split.category_ids) <= COCO_SLOTS:
        return SlottedClues(network, [category - 1 for category in split.category_ids])
    problem = f"knows {outputs} classes, {split.dataset}/{split.split} has {classes}"
    raise BadInput(path, problem, "give clue weights that were trained on these classes")


def output_count(network: ClueNetwork) -> int:
    """C of a clue network, from the logits of a small black image."""
    return len(network(np.zeros((64, 64, 3), np.uint8), ()).class_logits)


class SlottedClues:
    """Clue network of fewer classes, each read off one output of a larger network."""

    def __init__(self, network: ClueNetwork, slots: Sequence[int]):
        """slots: for every class its output in `network`, ascending."""
        self.network, self.slots = network, np.asarray(slots, np.int64)
        self.fingerprint = fingerprint([network_fingerprint(network), self.slots.tolist()])

    def __call__(self, image: np.ndarray, class_ids: tuple[int, ...] | None = None) -> Clues:
        """Clues of the classes in `class_ids`, or of predicted ones; never of an unused output."""
        asked = None if class_ids is None else tuple(int(self.slots[one]) for one in class_ids)
        clues = self.network(image, asked)
        used = np.isin(clues.class_ids, self.slots)
        if asked is None and not used.any():  # only outputs that no class has were predicted
            best = self.slots[np.argmax(clues.class_logits[self.slots])]
            clues = self.network(image, (int(best),))
            used = np.isin(clues.class_ids, self.slots)
        return replace(
            clues,
            coarse=clues.coarse[used],
            fine=clues.fine[used],
            cross=None if clues.cross is None else clues.cross[:, used],
            class_ids=np.searchsorted(self.slots, clues.class_ids[used]),
            class_logits=clues.class_logits[self.slots],
        )
