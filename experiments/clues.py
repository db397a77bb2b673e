"""The clue network of a run: trained on tags, loaded, measured."""

from pathlib import Path

import numpy as np

from bridge.clues import ClueNetwork
from experiments.settings import RoadSettings
from weaksam_jax.data.records import TagSplit
from weaksam_jax.data.store import read_stored


def train(train: TagSplit, settings: RoadSettings, out: Path, seed: int) -> ClueNetwork:
    """Trains the chosen network on tags; resumes and does not repeat a finished training."""
    if settings.clues == "weaktr":
        from bridge.train_weaktr import train_weaktr

        train_weaktr(train, settings.weaktr, out / "clues", seed)
    else:
        from bridge.lite_cam import train_lite_head

        train_lite_head(train, settings.lite, out / "clues", seed)
    return load(settings, out)


def load(settings: RoadSettings, out: Path) -> ClueNetwork:
    """The trained network of a run."""
    if settings.clues == "weaktr":
        from bridge.weaktr import WeakTrClues, load_weaktr

        return WeakTrClues(load_weaktr(out / "clues" / "weaktr.safetensors"))
    from bridge.lite_cam import load_lite_cam

    return load_lite_cam(out / "clues" / "lite_cam.safetensors", settings.lite)


def tag_map(root: Path, test: TagSplit) -> dict:
    """{"tag_map": mean average precision (0..1) over the classes of the logits stored in `root`}.

    Empty when no test image has a tag (photographs that one only wants to look at). The tags of
    the test split are looked at here, after training and for this figure alone.
    """
    from bridge.train_weaktr import tag_map as score

    stored = [read_stored(root, test.split, record.image_id)[0] for record in test.records]
    logits = np.stack([one["class_logits"] for one in stored])
    labels = np.zeros(logits.shape, bool)
    for row, record in zip(labels, test.records, strict=True):
        row[list(record.tags)] = True
    return {"tag_map": float(score(logits, labels))} if labels.any() else {}
