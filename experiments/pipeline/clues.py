"""The clue network of a run: trained on tags, loaded, measured."""

from pathlib import Path

import numpy as np

from bridge.clues.interface import ClueNetwork
from bridge.clues.lite_cam import LiteConfig
from bridge.clues.lite_cam_training import train_lite_head
from bridge.clues.networks import load_clues
from bridge.clues.weaktr_recipe import WeakTrRecipe
from bridge.clues.weaktr_training import check_images as check_batch
from bridge.clues.weaktr_training import tag_map as score
from bridge.clues.weaktr_training import train_weaktr
from experiments.pipeline.run import Run
from weaksam_jax.data.records import TagSplit
from weaksam_jax.data.store import read_clues


def train(run: Run) -> ClueNetwork:
    """Trains the chosen network on tags (or checks the file that was chosen instead).

    Resumes, and does not repeat a finished training.
    """
    recipe, split = run.config.clue_recipe(), run.data.splits["train"]
    if isinstance(recipe, WeakTrRecipe):
        train_weaktr(split, recipe, run.folder, seed=run.seed)
    elif isinstance(recipe, LiteConfig):
        train_lite_head(split, recipe, run.folder, seed=run.seed)
    return load(run, split)


def check_images(run: Run, split: TagSplit) -> None:
    """`BadInput` when the training images are too few for the network that is to be trained."""
    recipe = run.config.clue_recipe()
    if isinstance(recipe, WeakTrRecipe):
        check_batch(split, recipe)


def load(run: Run, split: TagSplit) -> ClueNetwork:
    """The trained network of a run, or that of the file that was chosen instead.

    split: any of the run's classes.
    """
    recipe, names = run.config.clue_recipe(), {WeakTrRecipe: "weaktr", LiteConfig: "lite_cam"}
    path = recipe if isinstance(recipe, Path) else run.folder.clue_network(names[type(recipe)])
    return load_clues(path, split.classes, split.category_ids, config=run.config.clue_use)


def tag_map(root: Path, test: TagSplit) -> dict:
    """{"tag_map": mean average precision (0..1) over the classes of the logits stored in `root`}.

    Empty when no test image has a tag (photographs that one only wants to look at). The tags of
    the test split are looked at here, after training and for this figure alone.
    """
    logits = stored_logits(root, test)
    labels = np.zeros(logits.shape, bool)
    for row, record in zip(labels, test.records, strict=True):
        row[list(record.tags)] = True
    return {"tag_map": float(score(logits, labels))} if labels.any() else {}


def stored_logits(root: Path, split: TagSplit) -> np.ndarray:
    """What the clue network says of every image as a whole: float32 `[images, C]`."""
    wanted = {"names": ("class_logits",), "classes": len(split.classes)}
    stored = [read_clues(root, split.split, record, **wanted) for record in split.records]
    return np.stack([one["class_logits"] for one in stored])
