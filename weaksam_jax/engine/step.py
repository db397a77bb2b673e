"""One training step: a pure function (state, batch) -> (state, metrics) over a mesh.

The gradient is taken inside one `jax.shard_map`, every device on its own images, and averaged with
`pmean`; the optimizer runs in plain jit on replicated arrays. `check_vma=False` belongs to that
`pmean`: with `check_vma=True` jax.grad of replicated parameters sums over the devices by itself and
the same code returns a gradient n times too large (tests/engine/test_step.py holds this).
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from weaksam_jax.engine.mesh import AXIS, replicated

Params = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
LossFn = Callable[[Params, Batch, jax.Array], tuple[jax.Array, Metrics]]


@flax.struct.dataclass
class TrainState:
    """All that training changes. step: int32 []. rng: typed key []; it never changes."""

    step: jax.Array
    params: Params
    opt: optax.OptState
    rng: jax.Array


def create_state(
    params: Params, tx: optax.GradientTransformation, rng: jax.Array, mesh: Mesh
) -> TrainState:
    """The state before the first step, replicated over the mesh.

    `params` and `rng` (a typed key) are copied: the step donates the state's buffers, the caller's
    arrays stay usable.
    """

    def init(params, rng):
        params = jax.tree.map(jnp.copy, params)
        rng = jax.random.wrap_key_data(jnp.copy(jax.random.key_data(rng)))
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), rng)

    return jax.jit(init, out_shardings=replicated(mesh))(params, rng)


def make_train_step(
    loss_fn: LossFn, tx: optax.GradientTransformation, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A jitted `step(state, batch) -> (state, metrics)`; it donates `state`.

    `loss_fn(params, batch, rng) -> (loss [], metrics of scalars)` sees the images of one device
    (every leaf of `batch` has a leading image axis) and a key that differs by step and device. The
    gradient is that of the mean of the devices' losses, so a `loss_fn` that is a mean over its
    images gives the same gradient on any number of devices. A normaliser that counts over the whole
    batch is `jax.lax.pmean(count, AXIS)` of a count without gradient. The metrics are averaged over
    the devices and hold `loss` too.
    """

    def gradient(params, batch, rng):
        rng = jax.random.fold_in(rng, jax.lax.axis_index(AXIS))
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, rng)
        return jax.lax.pmean((grads, {"loss": loss, **metrics}), AXIS)

    mapped = jax.shard_map(
        gradient, mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=P(), check_vma=False
    )

    def step(state, batch):
        grads, metrics = mapped(state.params, batch, jax.random.fold_in(state.rng, state.step))
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt=opt), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))


@contextlib.contextmanager
def count_compilations(name: str = "step") -> Iterator[list[str]]:
    """Yields a list that receives a line (with the shapes) for every compilation of `jit(name)`.

    Read from JAX's own log, because `step._cache_size()` counts cache entries and not compilations.
    """
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record):
            if (line := record.getMessage()).startswith(f"Compiling jit({name}) "):
                lines.append(line)

    logger, handler = logging.getLogger("jax"), Collect(logging.DEBUG)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
