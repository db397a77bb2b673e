"""The real MIL training on a few drawn images, as a program: `python mil_job.py JOB.json`.

The job: {"root": the folder of `write_inputs`, "runs": {name: {"devices", "config"}}, "out"}. Every
run trains on the first so many devices (null: all), and process 0 writes `<out>/<name>.npz`: the
loss of every step and the final parameters. The processes of a job find each other by
`weaksam_jax.engine.distributed`.
"""

import functools
import json
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags
from weaksam_jax.data.mini_set import write_mini
from weaksam_jax.data.store import Proposals, write_proposals
from weaksam_jax.detectors.mil import MilConfig, MilDetector, MilSamples, train_mil
from weaksam_jax.detectors.mil.config import DataConfig, MilOptimConfig, ModelConfig
from weaksam_jax.engine import distributed
from weaksam_jax.engine import train as training
from weaksam_jax.engine.mesh import data_mesh
from weaksam_jax.engine.weights import flatten
from weaksam_jax.settings import from_plain

SMALL = MilConfig(
    model=ModelConfig(fc_width=16, pool_size=3, dropout=0.0),
    optim=MilOptimConfig(pretrain_steps=2, steps=4, batch_size=8, warmup=1, checkpoint_every=2),
    data=DataConfig(scales=(((48, 64), (64, 48)),), max_proposals=16),
)


def write_inputs(root: Path, images: int = 16) -> Path:
    """Drawn images with tags, and random proposals for them."""
    split = open_tags(write_mini(root / "data", 0, images, 1, progress=False), "trainval")
    rng = np.random.default_rng(0)
    for record in split.records:
        corner = rng.uniform(0, 80, (20, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(15, 60, (20, 2))], 1)
        ones = np.ones(20, np.float32)
        proposals = Proposals(
            record.image_id, record.height, record.width, boxes.astype(np.float32),
            np.zeros(20), np.full(20, -1), np.zeros(20), ones, ones, None,
        )  # fmt: skip
        write_proposals(root / "proposals", split.split, proposals, {})
    return root


def train(root: Path, folder: Path, mesh, config: MilConfig, seed: int = 3) -> dict:
    """{"loss": of every step, name of a parameter: its value}."""
    split = open_tags(root / "data" / "VOC2007", "trainval")
    detector = MilDetector(config, split.classes)
    samples = MilSamples(split, root / "proposals", config)
    with mock.patch.object(training, "train", functools.partial(ORIGINAL, log_every=1)):
        params = train_mil(detector, samples, folder, mesh=mesh, seed=seed)
    lines = (folder.parent / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    return {"loss": np.asarray(losses)} | flatten(params)


ORIGINAL = training.train


def slow_down(pause: float) -> None:
    """Every sample takes so many seconds more."""
    call = MilSamples.__call__

    def slow(self, *arguments):
        time.sleep(pause)
        return call(self, *arguments)

    MilSamples.__call__ = slow


def main(argv) -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    distributed.start()
    if job.get("pause"):
        slow_down(job["pause"])
    for name, run in job["runs"].items():
        mesh = data_mesh(jax.devices()[: run.get("devices")])
        config = from_plain(MilConfig, run["config"], name, SMALL)
        result = train(Path(job["root"]), Path(job["out"]) / name / "mil", mesh, config)
        if distributed.is_leader():
            np.savez(Path(job["out"]) / f"{name}.npz", **result)


if __name__ == "__main__":
    sys.exit(entry_point(main))
