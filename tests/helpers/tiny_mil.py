"""A MIL detector of the smallest size, and random proposals."""

import numpy as np

from weaksam_jax.data.store import Proposals, write_proposals
from weaksam_jax.detectors.mil.config import WsodSettings

TINY = WsodSettings(
    width=16,
    pool_size=3,
    scales=(((64, 64),),),
    max_proposals=24,
    pretrain_steps=2,
    steps=3,
    batch=2,
    test_batch=2,
    warmup=1,
    checkpoint_every=1,
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
