"""A MIL detector of the smallest size, random proposals, and short ways to train and detect."""

import jax
import numpy as np

from weaksam_jax.data.store import Proposals, write_proposals
from weaksam_jax.detectors.mil import MilDetector, MilSamples, detect_mil, train_mil
from weaksam_jax.detectors.mil.config import (
    DataConfig,
    MilConfig,
    MilOptimConfig,
    ModelConfig,
    TestConfig,
)
from weaksam_jax.engine.mesh import data_mesh
from weaksam_jax.engine.weights import read_weights

TINY = MilConfig(
    model=ModelConfig(fc_width=16, pool_size=3),
    optim=MilOptimConfig(steps=3, batch_size=2, warmup=1, checkpoint_every=1, pretrain_steps=2),
    data=DataConfig(scales=(((64, 64),),), max_proposals=24),
    test=TestConfig(batch_size=2),
)


def write_random(root, split, record, rng, count=30):
    corner = rng.uniform(0, 80, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(9, 60, (count, 2))], 1)
    ones = np.ones(count, np.float32)
    proposals = Proposals(
        record.image_id, record.height, record.width, boxes.astype(np.float32),
        rng.integers(0, 2, count), np.full(count, -1), np.zeros(count), ones, ones, None,
    )  # fmt: skip
    write_proposals(root, split, proposals, {})


def train(split, proposals, config, folder, seed=0):
    """Parameters trained on one device, from `optim.init` where that is a file."""
    start = config.optim.init
    weights = read_weights(start) if start not in (None, "scratch") else None
    detector, samples = MilDetector(config, split.classes), MilSamples(split, proposals, config)
    mesh = data_mesh(jax.devices()[:1])
    return train_mil(detector, samples, folder, mesh=mesh, seed=seed, weights=weights)


def detect(params, split, proposals, config, folder, **more):
    """COCO results of a detector of the split's classes."""
    detector = MilDetector(config, split.classes)
    return detect_mil(detector, params, split, proposals_root=proposals, folder=folder, **more)
