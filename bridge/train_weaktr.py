"""Trains the clue network WeakTr (DeiT-S) on the image tags of a data set.

Example: python -m bridge.train_weaktr --data data/VOC2012 --out runs/clues \\
--deit deit_small_patch16_224-cd65a155.pth

Every epoch is kept: the same command goes on where it was stopped.
"""

from pathlib import Path

from bridge.clues.weaktr_recipe import WeakTrRecipe
from bridge.clues.weaktr_training import train_weaktr
from bridge.runtime.command import run_command
from weaksam_jax import runlog
from weaksam_jax.data.datasets import open_tags, split_names
from weaksam_jax.locks import locked
from weaksam_jax.outputs import OutFolder, check_apart
from weaksam_jax.ranges import Batch, Count, Positive, Seed, Workers
from weaksam_jax.run_folder import RunFolder


def main(argv: list[str] | None = None) -> None:
    """Command line: see the head of this file."""

    def command(
        data: Path,
        deit: Path,
        out: OutFolder,
        split: str | None = None,
        lr: Positive = 6e-4,
        batch_size: Batch = 64,
        epochs: Count = 60,
        workers: Workers = 2,
        seed: Seed = 0,
    ) -> None:
        """Trains WeakTr.

        Args:
            data: a data set: VOCdevkit, COCO folder, or images/ with tags.csv.
            deit: ImageNet weights to start from, deit_small_patch16_224-cd65a155.pth.
            out: the network goes to OUT/clues/weaktr.safetensors, its log to OUT/log.jsonl.
            split: name of the split [the data set's own training split].
            lr: peak rate of a batch of 512 images, scaled to the batch size; COCO14 used 2e-4.
            batch_size: images per step.
            epochs: passes over the images.
            workers: processes that decode and augment.
            seed: of the order, the augmentation and the new weights.
        """
        # The labels of the official code have the classes of difficult objects, too.
        tags = open_tags(data, split or split_names(data)["train"], difficult=True)
        recipe = WeakTrRecipe.paper(deit, lr, batch_size, epochs=epochs, workers=workers)
        check_apart("--out", out / "clues", {"--deit": deit})
        with locked(out, "train_weaktr", ("clues", runlog.FILE)):
            print(train_weaktr(tags, recipe, RunFolder(out), seed=seed))

    run_command(command, argv, "python -m bridge.train_weaktr", about=__doc__)


if __name__ == "__main__":
    from weaksam_jax.cli import entry_point

    raise SystemExit(entry_point(main))
