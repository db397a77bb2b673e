"""A long training on inputs that should break it.

    python -m experiments.paper.stress --run runs/mini-0 --out runs/stress
    python -m experiments.paper.stress --run runs/mini-0 --detector dino --out runs/stress-dino

Trains the mini preset's MIL detector (10,000 steps), or a retrained detector (2,000), with bfloat16
convolutions and fully connected layers on the training images of a finished run, with its proposals
or pseudo boxes, and spoils a share of the samples. Of all: a white, black or noisy image. Of the
MIL detector: no valid proposal; a prior of +-1e4 in the detection stream's logits; every proposal
one pixel or the same box; all tags or none. Of others: no object; every box one pixel, the same box
or the whole image; an image of one pixel. The training ends in finite weights, or (exit status 2)
at the first loss that is not finite, naming the step and its images.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from experiments.paper.seed_tables import open_folder
from experiments.pipeline.commands import run
from experiments.pipeline.detectors import (
    MilConfig,
    RetrainConfig,
    mil_preset,
    retrain_preset,
    retrainer,
)
from experiments.pipeline.run import Run, open_run
from weaksam_jax.data.datasets import dataset_fingerprint
from weaksam_jax.data.pseudo_boxes import PseudoSamples
from weaksam_jax.data.store import read_manifest
from weaksam_jax.detectors import RETRAINERS, Detector, train_detector
from weaksam_jax.detectors.mil import MilDetector, MilSamples
from weaksam_jax.engine.mesh import data_mesh
from weaksam_jax.errors import BadInput
from weaksam_jax.files import fingerprint, read_json
from weaksam_jax.flags import parse, peek
from weaksam_jax.locks import locked
from weaksam_jax.outputs import OutFolder
from weaksam_jax.ranges import Seed, Share
from weaksam_jax.runlog import FILE
from weaksam_jax.settings import change, to_plain

HUGE = 1e4
MIL_FAULTS, BOX_FAULTS = 7, 6  # kinds of `spoil` and `spoil_boxes`


def long_training(kind: str) -> MilConfig | RetrainConfig:
    """The mini preset of "mil" or of a row of `RETRAINERS`, in bfloat16."""
    preset, steps = mil_preset("mini"), 10_000
    if kind in RETRAINERS:
        preset, steps = retrain_preset(kind, "mini"), 2000
    every = {"optim.steps": steps, "optim.checkpoint_every": steps // 10}
    return change(preset, {"model.precision": "bfloat16", **every})


@dataclass(frozen=True)
class Stress:
    """Trains on spoiled samples."""

    run: Path
    """A run with finished proposals or, for a retrained detector, pseudo boxes."""
    out: OutFolder
    """Folder of checkpoints and log."""
    detector: Literal["mil", *RETRAINERS] = "mil"
    """What is trained; the settings below are its own."""
    share: Share = 0.25
    """Of the samples are spoiled."""
    seed: Seed = 0
    config: MilConfig | RetrainConfig = field(default_factory=lambda: long_training("mil"))
    """Of the detector, and they decide which it is; the MIL detector's training as a classifier of
    tags is left out."""


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
        sample["image"] = _empty(sample["image"], rng)
    else:
        sample["tags"] = np.full_like(sample["tags"], kind == 5)
    return sample


def spoil_boxes(sample: dict, kind: int, rng: np.random.Generator) -> dict:
    """The training sample of a retrained detector with one of the faults, `kind` 0 to 5; shapes and
    types stay."""
    sample, boxes, (height, width) = dict(sample), sample["boxes"], sample["size"]
    if kind == 0:
        sample["valid"] = np.zeros_like(sample["valid"])
    elif kind == 1:
        corner = np.floor(boxes[:, :2])
        sample["boxes"] = np.concatenate([corner, corner + 1], 1).astype(np.float32)
    elif kind == 2:
        sample["boxes"] = np.repeat(boxes[:1], len(boxes), 0)
    elif kind == 3:
        sample["boxes"] = np.full_like(boxes, [0, 0, width, height])
    elif kind == 4:
        sample["image"] = _empty(sample["image"], rng)
    else:
        sample["size"], sample["boxes"] = np.ones(2, np.float32), np.full_like(boxes, [0, 0, 1, 1])
        seen = np.zeros_like(sample["image"])
        seen[0, 0] = sample["image"][0, 0]
        sample["image"] = seen
    return sample


def _empty(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise, or all black or white, of the same shape."""
    flat = rng.choice([0, 255]) * np.ones_like(image)
    noise = rng.integers(0, 256, image.shape, np.uint8)
    return noise if rng.random() < 0.5 else flat


@dataclass(frozen=True)
class Spoiled:
    """Training samples of which a share goes through `fault(sample, kind, rng)`, any of its `kinds`
    kinds. samples: of `weaksam_jax.engine.train.Samples`."""

    samples: Any
    share: float
    fault: Callable[[dict, int, np.random.Generator], dict]
    kinds: int

    @property
    def buckets(self) -> Sequence[int]:
        return self.samples.buckets

    def draw(self, bucket: int, rng: np.random.Generator) -> Any:
        return self.samples.draw(bucket, rng)

    def example(self) -> dict[str, np.ndarray]:
        return self.samples.example()

    def __call__(self, index: int, drawn: Any, rng: np.random.Generator) -> dict:
        sample = self.samples(index, drawn, rng)
        if rng.random() >= self.share:
            return sample
        return self.fault(sample, int(rng.integers(self.kinds)), rng)


def stress(options: Stress) -> dict:
    """Trains; returns the steps, the seconds and the largest weight."""
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
    make = _mil if isinstance(options.config, MilConfig) else _retrained
    detector, samples, inputs = make(options, opened)
    images = dataset_fingerprint(opened.data.path, opened.data.names["train"])
    how, folder = [to_plain(options.config), options.share, options.seed], options.out / "stress"
    open_folder(folder, [*how, images, inputs])
    return train_detector(detector, samples, folder, mesh=data_mesh(), seed=options.seed)


def _mil(options: Stress, opened: Run) -> tuple[Detector, Spoiled, Any]:
    """(detector, samples, what stands for the inputs beside the images)."""
    split = opened.data.splits["train"]
    samples = MilSamples(split, opened.proposals, options.config)
    spoiled = Spoiled(samples, options.share, spoil, kinds=MIL_FAULTS)
    inputs = read_manifest(opened.proposals, split.split)
    return MilDetector(options.config, split.classes), spoiled, inputs


def _retrained(options: Stress, opened: Run) -> tuple[Detector, Spoiled, Any]:
    """As `_mil`."""
    split, data = opened.data.splits["train"], options.config.data
    pgt = read_json(opened.folder.pseudo_boxes())
    samples = PseudoSamples(pgt, split, data.scales, augment=data.augment)
    spoiled = Spoiled(samples, options.share, spoil_boxes, kinds=BOX_FAULTS)
    return retrainer(options.config, split.classes), spoiled, fingerprint(pgt)


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    kind = peek(argv, "detector") or "mil"
    missing = {"run": tyro.MISSING, "out": tyro.MISSING}
    start = Stress(**missing, config=long_training(kind))
    print(stress(parse(Stress, argv, __doc__, name="paper.stress", default=start)))


if __name__ == "__main__":
    sys.exit(run("paper.stress"))
