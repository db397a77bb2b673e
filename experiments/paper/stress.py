"""A long training on inputs that should break it: `python -m experiments.paper.stress --run RUN`.

Trains the mini preset's MIL detector with bfloat16 convolutions and fully connected layers on the
training images and proposals of a finished mini run, and spoils a share of the samples: no valid
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
import tyro

from experiments.pipeline.config import mini
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags, split_names
from weaksam_jax.detectors.mil.config import WsodSettings
from weaksam_jax.errors import BadInput

HUGE = 1e4


@dataclass(frozen=True)
class Stress:
    """Trains on spoiled samples."""

    run: Path
    """A run on the mini set with finished proposals."""
    out: Path
    """Folder of checkpoints and log."""
    share: float = 0.25
    """Of the samples are spoiled."""
    seed: int = 0
    settings: WsodSettings = field(
        default_factory=lambda: replace(
            mini().wsod, dtype="bfloat16", steps=10_000, checkpoint_every=1000
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
    params = train_spoiled(options)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(params))
    if not np.isfinite(largest):
        raise BadInput("the weights", "are not finite", "report it: the losses were")
    seconds = round(time.perf_counter() - start, 1)
    return {"steps": options.settings.steps, "seconds": seconds, "largest_weight": largest}


def train_spoiled(options: Stress) -> dict:
    """The parameters of a MIL detector trained on samples of which a share is spoiled."""
    import jax

    from weaksam_jax.data.batches import make_batches
    from weaksam_jax.detectors.mil.network import build_model
    from weaksam_jax.detectors.mil.optimizer import make_optimizer
    from weaksam_jax.detectors.mil.samples import MilSamples
    from weaksam_jax.detectors.mil.train import detector_loss, init_params
    from weaksam_jax.engine.loop import train
    from weaksam_jax.engine.mesh import data_mesh
    from weaksam_jax.engine.step import create_state, make_train_step

    data = options.run / "data" / "VOC2007"
    split = open_tags(data, split_names(data)["train"])
    settings, mesh = options.settings, data_mesh()
    samples = MilSamples(split, options.run / "proposals", settings)

    def spoiled(index: int, size: tuple, rng: np.random.Generator) -> dict:
        sample = samples(index, size, rng)
        if rng.random() >= options.share:
            return sample
        return spoil(sample, int(rng.integers(7)), rng)

    model = build_model(settings, len(split.classes))
    init_key, train_key = jax.random.split(jax.random.key(options.seed))
    params = init_params(model, samples, settings, init_key)
    tx = make_optimizer(settings, settings.rate, settings.steps)
    state = train(
        create_state(params, tx, train_key, mesh),
        make_train_step(partial(detector_loss, model, settings), tx, mesh),
        make_batches(spoiled, samples.groups, settings.batch, options.seed, draw=samples.draw),
        settings.steps,
        options.out / "stress",
        mesh,
        checkpoint_every=settings.checkpoint_every,
        name="stress",
    )
    return state.params


def main(argv: Sequence[str] | None = None) -> None:
    options = tyro.cli(
        Stress, args=argv, description=__doc__, prog="python -m experiments.paper.stress"
    )
    print(stress(options))


if __name__ == "__main__":
    from weaksam_jax.engine.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    sys.exit(entry_point(main))
