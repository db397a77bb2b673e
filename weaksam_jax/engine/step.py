"""One training step: a pure function (state, batch) -> (state, metrics) over a mesh.

The gradient is taken inside one `jax.shard_map`, every device on its own images, and averaged with
`pmean`; the optimizer runs in plain jit on replicated arrays. `check_vma=False` belongs to that
`pmean`: with `check_vma=True` jax.grad of replicated parameters sums over the devices by itself and
the same code returns a gradient n times too large (tests/engine/test_step.py holds this).
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from weaksam_jax.engine.mesh import AXIS, check_batch, replicated

Params = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Keys(NamedTuple):
    """Typed random keys of a part of a batch, B images.

    part: `[]`, for what is drawn for all of its images at once, as dropout is; it depends on how
    the batch is cut. images: `[B]`, for what is drawn for an image alone; each depends on the
    image's place in the whole batch, however that is cut.
    """

    part: jax.Array
    images: jax.Array


# (parameters, batch, keys, step int32 []) -> (loss [], metrics of scalars)
LossFn = Callable[[Params, Batch, Keys, jax.Array], tuple[jax.Array, Metrics]]


def keys_of(rng: jax.Array, images: int) -> Keys:
    """The keys of a batch that is not cut: image i has `split(rng, images)[i]`."""
    return Keys(rng, jax.random.split(rng, images))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
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
    arrays stay usable. Several processes must give the same values.
    """

    def init(params, key):
        params = jax.tree.map(jnp.copy, params)
        rng = jax.random.wrap_key_data(jnp.copy(key))
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), rng=rng)

    # From the host, because arrays of one process's device cannot go to a mesh of several.
    values = jax.device_get((params, jax.random.key_data(rng)))
    return jax.jit(init, out_shardings=replicated(mesh))(*values)


def make_train_step(
    loss_fn: LossFn, tx: optax.GradientTransformation, mesh: Mesh, micro_batches: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A jitted `step(state, batch) -> (state, metrics)`; it donates `state`.

    `loss_fn(params, batch, keys, step) -> (loss [], metrics of scalars)` sees one part of the batch
    (every leaf has a leading image axis): the images of one device, which takes them in
    `micro_batches` equal parts, so that the activations of one alone are in memory. The gradient is
    that of the mean of all parts' losses; the metrics are averaged likewise and hold `loss` too. A
    `loss_fn` that is a mean over its images thus gives the same gradient however the batch is cut.
    A normaliser that counts over more than one part is `jax.lax.pmean(count, AXIS)` of a count
    without gradient: over the devices, but not over their micro-batches.

    The keys depend on the step. What is drawn with an image's own key is the same however the batch
    is cut, and only the order of sums differs. What is drawn with the part's key (dropout) differs
    by the number of parts, and only by it: N devices with 1 micro-batch are 1 device with N.
    """

    def part_gradient(params, part, index, rng, step):
        images, own_keys = part
        place = jax.lax.axis_index(AXIS) * micro_batches + index
        keys = Keys(jax.random.fold_in(rng, place), own_keys)
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, images, keys, step
        )
        return grads, {"loss": loss, **metrics}

    def gradient(params, batch, rng, step):
        check_batch(len(batch[1]), 1, micro_batches)
        if micro_batches == 1:
            return jax.lax.pmean(part_gradient(params, batch, 0, rng=rng, step=step), AXIS)
        parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)

        def add(total, one):
            found = part_gradient(params, one[1], one[0], rng=rng, step=step)
            return jax.tree.map(jnp.add, total, found), None

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(part_gradient, params, first, 0, rng, step)
        total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add, total, (jnp.arange(micro_batches), parts))
        return jax.lax.pmean(jax.tree.map(lambda x: x / micro_batches, total), AXIS)

    specs = P(), P(AXIS), P(), P()
    mapped = jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)

    def step(state, batch):
        rng = jax.random.fold_in(state.rng, state.step)
        whole = keys_of(jax.random.fold_in(rng, 0), len(next(iter(batch.values()))))
        grads, metrics = mapped(state.params, (batch, whole.images), rng, state.step)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt, rng=state.rng), metrics

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
