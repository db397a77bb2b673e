"""A long training on inputs that should break it.

    python -m experiments.paper.stress --run runs/mini-0 --out runs/stress

Trains the mini preset's MIL detector with bfloat16 convolutions and fully connected layers on the
training images and proposals of a finished run, and spoils a share of the samples: no valid
proposal; a prior of +-1e4 in the detection stream's logits; every proposal one pixel or the same
box; a white, black or noisy image; all tags or none. The training ends in finite weights, or (exit
status 2) at the first loss that is not finite, naming the step and its images.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from experiments.paper.seed_tables import open_folder
from experiments.pipeline.commands import run
from experiments.pipeline.detectors import MilConfig, mil_preset
from experiments.pipeline.run import Run, open_run
from weaksam_jax.data.datasets import dataset_fingerprint
from weaksam_jax.data.store import read_manifest
from weaksam_jax.errors import BadInput
from weaksam_jax.flags import parse
from weaksam_jax.locks import locked
from weaksam_jax.outputs import OutFolder
from weaksam_jax.ranges import Seed, Share
from weaksam_jax.runlog import FILE
from weaksam_jax.settings import change, to_plain

HUGE = 1e4
LONG = {"model.precision": "bfloat16", "optim.steps": 10_000, "optim.checkpoint_every": 1000}


@dataclass(frozen=True)
class Stress:
    """Trains on spoiled samples."""

    run: Path
    """A run with finished proposals."""
    out: OutFolder
    """Folder of checkpoints and log."""
    share: Share = 0.25
    """Of the samples are spoiled."""
    seed: Seed = 0
    config: MilConfig = field(default_factory=lambda: change(mil_preset("mini"), LONG))
    """Of the detector; its training as a classifier of tags is left out."""


def spoil(sample: dict, kind: int, rng: np.random.Generator) -> dict:
    """The sample with one of the faults, `kind` 0 to 6; shapes and types stay."""
    sample = dict(sample)
    if kind == 0:
        sample["valid"] = np.zeros_like(sample["valid"])
    elif kind == 1:
        signs = rng.choice([-1, 1], sample["prior"].shape)
        sample["prior"] = (HUGE * signs).astype(np.float32)
    elif kind == 2:
        corner = np.floor(sample["boxes"][:, :2])
        sample["boxes"] = np.concatenate([corner, corner + 1], 1).astype(np.float32)
    elif kind == 3:
        sample["boxes"] = np.repeat(sample["boxes"][:1], len(sample["boxes"]), 0)
    elif kind == 4:
        flat = rng.choice([0, 255]) * np.ones_like(sample["image"])
        noise = rng.integers(0, 256, sample["image"].shape, np.uint8)
        sample["image"] = noise if rng.random() < 0.5 else flat
    else:
        sample["tags"] = np.full_like(sample["tags"], kind == 5)
    return sample


def stress(options: Stress) -> dict:
    """Trains; returns the steps, the seconds and the largest weight."""
    import jax

    start = time.perf_counter()
    with locked(options.out, "paper", (FILE,)):
        params = train_spoiled(options, open_run(options.run))
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(params))
    if not np.isfinite(largest):
        raise BadInput("the weights", "are not finite", "report it: the losses were")
    seconds = round(time.perf_counter() - start, 1)
    return {"steps": options.config.optim.steps, "seconds": seconds, "largest_weight": largest}


def train_spoiled(options: Stress, opened: Run) -> dict:
    """The parameters after a training whose samples are spoiled now and then."""
    from weaksam_jax.detectors import train_detector
    from weaksam_jax.detectors.mil import MilDetector, MilSamples
    from weaksam_jax.engine.mesh import data_mesh

    class Spoiled(MilSamples):
        def __call__(self, index: int, drawn: tuple[int, int], rng: np.random.Generator) -> dict:
            sample = super().__call__(index, drawn, rng)
            if rng.random() >= options.share:
                return sample
            return spoil(sample, int(rng.integers(7)), rng)

    split, mesh = opened.data.splits["train"], data_mesh()
    samples = Spoiled(split, opened.proposals, options.config)
    detector, folder = MilDetector(options.config, split.classes), options.out / "stress"
    images = dataset_fingerprint(opened.data.path, opened.data.names["train"])
    proposals = read_manifest(opened.proposals, split.split)
    how = [to_plain(options.config), options.share, options.seed]
    open_folder(folder, [*how, images, proposals])
    return train_detector(detector, samples, folder, mesh=mesh, seed=options.seed)


def main(argv: Sequence[str] | None = None) -> None:
    print(stress(parse(Stress, argv, __doc__, name="paper.stress")))


if __name__ == "__main__":
    sys.exit(run("paper.stress"))
