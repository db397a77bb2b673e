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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from experiments.pipeline.commands import run
from experiments.pipeline.detectors import MilConfig, mil_preset
from experiments.pipeline.run import Run, open_run
from weaksam_jax.errors import BadInput
from weaksam_jax.flags import parse

HUGE = 1e4


@dataclass(frozen=True)
class Stress:
    """Trains on spoiled samples."""

    run: Path
    """A run with finished proposals."""
    out: Path
    """Folder of checkpoints and log."""
    share: float = 0.25
    """Of the samples are spoiled."""
    seed: int = 0
    settings: MilConfig = field(
        default_factory=lambda: replace(
            mil_preset("mini"), dtype="bfloat16", steps=10_000, checkpoint_every=1000
        )
    )
    """Of the training; tag pre-training is left out."""


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
    state = train_spoiled(options, open_run(options.run))
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(state.params))
    if not np.isfinite(largest):
        raise BadInput("the weights", "are not finite", "report it: the losses were")
    seconds = round(time.perf_counter() - start, 1)
    return {"steps": options.settings.steps, "seconds": seconds, "largest_weight": largest}


def train_spoiled(options: Stress, opened: Run):
    """The state after a training whose samples are spoiled now and then."""
    import jax

    from weaksam_jax.data.batches import make_batches
    from weaksam_jax.detectors.mil.network import build_model
    from weaksam_jax.detectors.mil.optimizer import make_optimizer
    from weaksam_jax.detectors.mil.samples import MilSamples
    from weaksam_jax.detectors.mil.train import detector_loss, init_params
    from weaksam_jax.engine.loop import train
    from weaksam_jax.engine.mesh import data_mesh
    from weaksam_jax.engine.step import create_state, make_train_step

    split, settings, mesh = opened.data.splits["train"], options.settings, data_mesh()
    samples = MilSamples(split, opened.proposals, settings)

    def spoiled(index: int, size: tuple, rng: np.random.Generator) -> dict:
        sample = samples(index, size, rng)
        if rng.random() >= options.share:
            return sample
        return spoil(sample, int(rng.integers(7)), rng)

    model = build_model(settings, len(split.classes))
    init_key, train_key = jax.random.split(jax.random.key(options.seed))
    params = init_params(model, samples, settings, init_key)
    tx = make_optimizer(settings, settings.rate, settings.steps)
    step = make_train_step(partial(detector_loss, model, settings), tx, mesh)
    batches = make_batches(spoiled, samples.groups, settings.batch, options.seed, draw=samples.draw)
    return train(
        create_state(params, tx, train_key, mesh),
        step,
        batches,
        settings.steps,
        options.out / "stress",
        mesh,
        checkpoint_every=settings.checkpoint_every,
        name="stress",
    )


def main(argv: Sequence[str] | None = None) -> None:
    print(stress(parse(Stress, argv, __doc__, "paper.stress")))


if __name__ == "__main__":
    sys.exit(run("paper.stress"))
