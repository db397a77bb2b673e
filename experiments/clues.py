"""The clue network of a run: trained on tags, loaded, measured."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from bridge.clues import ClueNetwork
from experiments.settings import RoadSettings
from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagSplit


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


def tag_map(network: ClueNetwork, test: TagSplit) -> dict:
    """{"tag_map": mean average precision (0..1) of the class logits over the classes}.

    The tags of the test split are looked at here, after training and for this figure alone.
    """
    from bridge.train_weaktr import tag_map as score

    bar = tqdm(test.records, desc="tags test", unit="images")
    logits = np.stack([network(load_image(record.path), None).class_logits for record in bar])
    labels = np.zeros(logits.shape, bool)
    for row, record in zip(labels, test.records, strict=True):
        row[list(record.tags)] = True
    return {"tag_map": float(score(logits, labels))}
