"""A small training run as a program, for tests that kill it, in one process or several:
`python loop_job.py FOLDER STEPS PAUSE [BAD]`.

Prints the final parameters. A step takes PAUSE seconds, so that a signal arrives in the middle.
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from weaksam_jax.cli import entry_point
from weaksam_jax.data.batches import make_batches
from weaksam_jax.engine.distributed import process, start
from weaksam_jax.engine.loop import train
from weaksam_jax.engine.mesh import data_mesh
from weaksam_jax.engine.step import create_state, make_train_step


def sample(index, bucket, rng):
    """Noise that depends on the sample's own generator, so a wrong resume changes the result."""
    return {"x": rng.standard_normal(4).astype(np.float32) + index, "image_id": np.int64(index)}


def loss_fn(params, batch, keys, step):
    noise = jax.random.normal(keys.part, (batch["x"].shape[0],))
    error = batch["x"] @ params["w"] - 1 + 0.1 * noise
    return jnp.mean(error**2), {}


def run(folder, steps, pause=0.0, bad=None):
    """Trains `steps` steps of 4 images out of 10; `bad`: image that has a NaN."""
    mesh, tx = data_mesh(), optax.adam(1e-2)
    step = make_train_step(loss_fn, tx, mesh)

    def slow(index, bucket, rng):
        time.sleep(pause / 4)
        one = sample(index, bucket, rng)
        return one if index != bad else one | {"x": np.full(4, np.nan, np.float32)}

    batches = make_batches(slow, [0] * 10, 4, seed=0, process=process())
    state = create_state({"w": np.zeros(4, np.float32)}, tx, jax.random.key(1), mesh)
    state = train(state, step, batches, steps, folder, mesh, checkpoint_every=3, log_every=2)
    return np.asarray(state.params["w"])


def main(argv):
    folder, steps, pause, *bad = sys.argv[1:]
    start()
    print(run(Path(folder), int(steps), float(pause), *map(int, bad)).tobytes().hex())


if __name__ == "__main__":
    sys.exit(entry_point(main))
