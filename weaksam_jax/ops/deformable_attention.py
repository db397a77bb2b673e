"""Multi-scale deformable attention (Zhu et al. 2021, equation 3): bilinear samples of a pyramid.

The four neighbours of every cell stand side by side in one table, zeros around each map, so that a
sample is one row of it wherever it lies, and its gradient one row that is added. No loop over
points, levels or queries; the program does not depend on where the samples are.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Shapes = Sequence[tuple[int, int]]  # (height, width) of the levels


def deformable_attention(
    value: jax.Array,
    level_shapes: Shapes,
    locations: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """Weighted bilinear samples of L maps, for one image.

    value: float `[T, H, D]`, the maps of H heads one after another, each row by row: T is the sum
    of height * width of `level_shapes` (Python numbers). locations: `[Q, H, L, P, 2]`, (x, y) as
    shares of each level's width and height, half-pixel centres, zeros outside. weights: `[Q, H, L,
    P]`, of any sum. Returns `[Q, H, D]` of value's type. Positions, weights and sums are float32
    even if values are bfloat16. Differentiable in all three arrays; backward keeps no samples.

    Raises ValueError when the shapes do not agree.
    """
    cells = sum(height * width for height, width in level_shapes)
    if value.shape[0] != cells or locations.shape[2] != len(level_shapes):
        found = f"{value.shape[0]} cells and {locations.shape[2]} levels"
        raise ValueError(f"level_shapes {tuple(level_shapes)} do not fit {found}")
    shapes = tuple(map(tuple, level_shapes))
    rows, shares = sample_places(shapes, locations, weights)

    def one_head(inputs):
        return weighted_samples(shapes, *inputs)

    inputs = value.swapaxes(0, 1), rows, shares
    every = jax.lax.map(one_head, inputs)
    return every.swapaxes(0, 1).astype(value.dtype)


def corner_table(value: jax.Array, level_shapes: Shapes) -> jax.Array:
    """Values `[T, D]` -> `[N, 4, D]`: row (y, x) of a level holds the cells (y - 1, x - 1),
    (y - 1, x), (y, x - 1), (y, x), zeros outside; N is the sum of (height + 1) * (width + 1)."""
    ends = np.cumsum([height * width for height, width in level_shapes])
    levels = jnp.split(value, ends[:-1])
    return jnp.concatenate(
        [_corners(one, *shape) for one, shape in zip(levels, level_shapes, strict=True)]
    )


def _corners(level: jax.Array, height: int, width: int) -> jax.Array:
    channels = level.shape[-1]
    padded = jnp.pad(level.reshape(height, width, channels), ((1, 1), (1, 1), (0, 0)))
    shifted = [padded[y : y + height + 1, x : x + width + 1] for y in (0, 1) for x in (0, 1)]
    return jnp.stack(shifted, 2).reshape(-1, 4, channels)


def sample_places(
    level_shapes: Shapes, locations: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Where samples lie in `corner_table`, and the share of each corner.

    locations `[Q, H, L, P, 2]`, weights `[Q, H, L, P]` as of `deformable_attention`. Returns
    (rows int32 `[H, Q, L * P]`, shares float32 `[H, Q, L * P, 4]`, 0 more than a cell outside).
    """
    sizes = np.asarray(level_shapes, np.int32)
    starts = np.concatenate([[0], np.cumsum((sizes + 1).prod(1))[:-1]]).astype(np.int32)
    width, height = (sizes[:, axis][:, None] for axis in (1, 0))
    locations, weights = locations.astype(jnp.float32), weights.astype(jnp.float32)
    column, right, inside_x = _neighbours(locations[..., 0], width)
    row, below, inside_y = _neighbours(locations[..., 1], height)
    places = starts[:, None] + row * (width + 1) + column
    weights = jnp.where(inside_x & inside_y, weights, 0.0)
    upper, lower = weights * (1 - below), weights * below
    shares = jnp.stack(
        [upper * (1 - right), upper * right, lower * (1 - right), lower * right], axis=-1
    )
    queries, heads = places.shape[:2]
    places, shares = places.swapaxes(0, 1), shares.swapaxes(0, 1)
    return places.reshape(heads, queries, -1), shares.reshape(heads, queries, -1, 4)


def _neighbours(location: jax.Array, size: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(index of the lower neighbour, from 0 for the padding; distance from it; within a cell)."""
    position = location * size.astype(np.float32) - 0.5
    inside = (position > -1) & (position < size)
    position = jnp.where(inside, position, 0.0)  # no index from NaN or infinity
    low = jnp.floor(position)
    return low.astype(jnp.int32) + 1, position - low, inside


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def weighted_samples(
    level_shapes: Shapes, value: jax.Array, rows: jax.Array, shares: jax.Array
) -> jax.Array:
    """Of one head: float32 `[Q, D]`, the sum over K samples and 4 corners of `corner_table` of
    value `[T, D]` at `rows` `[Q, K]`, times `shares` `[Q, K, 4]`."""
    found = _rows_of(corner_table(value, level_shapes), rows)
    return jnp.sum(found * shares[..., None], axis=(1, 2))


def _rows_of(table: jax.Array, rows: jax.Array) -> jax.Array:
    return table.at[rows].get(mode="promise_in_bounds").astype(jnp.float32)


def _forward(level_shapes, value, rows, shares):
    return weighted_samples(level_shapes, value, rows, shares), (value, rows, shares)


def _backward(level_shapes, residuals, gradient):
    value, rows, shares = residuals
    table = corner_table(value, level_shapes)
    to_shares = jnp.sum(_rows_of(table, rows) * gradient[:, None, None, :], axis=-1)
    # float32: many samples may add to one cell, and a bfloat16 sum stops growing at 256 terms.
    added = shares[..., None] * gradient[:, None, None, :]
    to_table = jnp.zeros(table.shape, jnp.float32)
    to_table = to_table.at[rows].add(added, mode="promise_in_bounds")
    wide = jax.ShapeDtypeStruct(value.shape, jnp.float32)
    back = jax.linear_transpose(lambda value: corner_table(value, level_shapes), wide)
    return back(to_table)[0].astype(value.dtype), None, to_shares


weighted_samples.defvjp(_forward, _backward)
