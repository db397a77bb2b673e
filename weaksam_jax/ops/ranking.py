"""The best of many values, in order."""

import functools

import jax
import jax.numpy as jnp

PART = 8192  # values that a TPU sorts at a time
_WORTH = 2  # a row is cut where it is so many times as long as what is kept of its parts


def top_k(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` of `[N]`, in other steps on TPUs: (the `count` largest, falling; their places
    int32). Equal values: lower place first.

    A TPU sorts all of a row for its best, and the time of a sort grows faster than its length (by
    the square of the logarithm). So long rows are cut into parts, of which the best are sorted once
    more: the result is the same to the last bit.
    """
    return jax.lax.platform_dependent(
        values,
        tpu=functools.partial(in_parts, count=count),
        default=functools.partial(_at_once, count=count),
    )


def _at_once(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    best, places = jax.lax.top_k(values, count)
    return best, places


def in_parts(values: jax.Array, count: int, part: int = PART) -> tuple[jax.Array, jax.Array]:
    """`top_k` as a TPU does it; rows that are not worth it are sorted at once.

    Parts and what is kept of them stand in the order of the values, so that the lower place is
    first among equals in either step.
    """
    total = values.shape[0]
    parts = -(-total // part)
    if parts * min(count, part) * _WORTH > total:
        return _at_once(values, count)
    padding = (0, parts * part - total)
    rows = jnp.pad(values, padding, constant_values=-jnp.inf).reshape(parts, part)
    best, places = jax.lax.top_k(rows, min(count, part))
    places = places + part * jnp.arange(parts, dtype=jnp.int32)[:, None]
    best, order = jax.lax.top_k(best.reshape(-1), count)
    return best, places.reshape(-1)[order]
