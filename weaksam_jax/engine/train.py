"""Training of any detector: `train_detector` puts samples, step and loop together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from weaksam_jax.data.batches import make_batches
from weaksam_jax.engine.distributed import process
from weaksam_jax.engine.loop import train
from weaksam_jax.engine.mesh import check_batch
from weaksam_jax.engine.optimizer import freeze
from weaksam_jax.engine.step import LossFn, Params, create_state, make_train_step


class Samples(Protocol):
    """Training samples: `samples(index, drawn, rng)` -> arrays of one image, whose shapes depend on
    `drawn` alone; batches are made of one bucket, and `draw(bucket, rng)` chooses once per batch
    what its samples have in common (their padded size)."""

    buckets: Sequence[int]

    def draw(self, bucket: int, rng: np.random.Generator) -> Any: ...
    def __call__(self, index: int, drawn: Any, rng: np.random.Generator) -> dict: ...
    def example(self) -> dict[str, np.ndarray]:
        """A batch of one image, for `init`: its shapes count and not its values."""
        ...


def train_detector(
    detector,
    samples: Samples,
    folder: str | Path,
    *,
    mesh: Mesh,
    seed: int,
    params: Params | None = None,
    key: jax.Array | None = None,
    weights: Any = None,
    until: int | None = None,
    name: str | None = None,
    log: str | Path | None = None,
) -> Params:
    """Trains `detector` (`weaksam_jax.detectors.Detector`) and returns its parameters (NumPy).

    Resumes from `folder/checkpoints`; the same seed gives the same bits on the same machine.
    params, key: where to start and the key of training, else both from `seed` (`detector.init`,
    with `weights`). until: stop after so many steps of the schedule. name: the stage's in the log
    [folder's name]; log: the file [folder/../log.jsonl]. Metrics called dropped_... (shares of RoIs
    or queries) are logged for every step. Raises `BadInput` as `weaksam_jax.engine.loop.train` and
    when the images of a batch do not divide among the devices.
    """
    folder, optim = Path(folder), detector.config.optim
    check_batch(optim.batch_size, mesh.size, optim.micro_batches)
    batches = make_batches(
        samples, samples.buckets, optim.batch_size, seed=seed, draw=samples.draw, process=process()
    )
    if params is None:
        init_key, key = jax.random.split(jax.random.key(seed))
        params = detector.init(init_key, samples.example(), weights)
    tx = detector.optimizer()
    state = create_state(params, tx, key, mesh=mesh)
    step = make_train_step(frozen_loss(detector), tx, mesh, micro_batches=optim.micro_batches)
    state = train(
        state,
        step,
        batches,
        steps=optim.steps if until is None else min(until, optim.steps),
        folder=folder,
        mesh=mesh,
        checkpoint_every=optim.checkpoint_every,
        name=name or folder.name,
        log=log,
        every_step="dropped_",
    )
    return jax.device_get(state.params)


def frozen_loss(detector) -> LossFn:
    """The detector's loss with its frozen parameters as constants."""

    def loss(params, batch, keys, step):
        return detector.loss(freeze(params, detector.frozen), batch, keys, step=step)

    return loss
