"""Multi-scale deformable attention (Zhu et al. 2021, equation 3): bilinear samples of a pyramid.

The four neighbours of every cell stand side by side in one table, zeros around each map, so that a
sample is one row of it wherever it lies, and its gradient one row that is added. No loop over
points, levels or queries; the program does not depend on where the samples are.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Shapes = Sequence[tuple[int, int]]  # (height, width) of the levels
# Queries of a head at a time on a CPU: 64 with 16 samples of 32 channels are 0.5 MB.
CPU_CHUNK = 64


def deformable_attention(
    value: jax.Array,
    level_shapes: Shapes,
    locations: jax.Array,
    weights: jax.Array,
    *,
    chunk: int | None = None,
) -> jax.Array:
    """Weighted bilinear samples of L maps, for one image.

    value: float `[T, H, D]`, the maps of H heads one after another, each row by row: T is the sum
    of height * width of `level_shapes` (Python numbers). locations: `[Q, H, L, P, 2]`, (x, y) as
    shares of each level's width and height, half-pixel centres, zeros outside. weights: `[Q, H, L,
    P]`, of any sum. Returns `[Q, H, D]` of value's type. Positions, weights and sums are float32
    even if values are bfloat16. Differentiable in all three arrays; backward keeps no samples.

    chunk: queries of a head at a time, so that their samples stay in a CPU's cache; 0: all queries
    of all heads at once. None: `CPU_CHUNK` on a CPU, 0 elsewhere. Raises ValueError when the shapes
    do not agree.
    """
    more = {"weights": weights[None], "chunk": chunk}
    return deformable_attention_of_images(value[None], level_shapes, locations[None], **more)[0]


def deformable_attention_of_images(
    value: jax.Array,
    level_shapes: Shapes,
    locations: jax.Array,
    weights: jax.Array,
    *,
    chunk: int | None = None,
) -> jax.Array:
    """`deformable_attention` of B images: value `[B, T, H, D]`, locations `[B, Q, H, L, P, 2]`,
    weights `[B, Q, H, L, P]` -> `[B, Q, H, D]`. An image is to it what another head is, so that a
    CPU's cache holds the samples of one (under `jax.vmap` it would hold those of all)."""
    cells = sum(height * width for height, width in level_shapes)
    if value.shape[1] != cells or locations.shape[3] != len(level_shapes):
        found = f"{value.shape[1]} cells and {locations.shape[3]} levels"
        raise ValueError(f"level_shapes {tuple(level_shapes)} do not fit {found}")
    shapes, images = tuple(map(tuple, level_shapes)), value.shape[0]
    rows, shares = sample_places(shapes, locations, weights)
    inputs = [_heads_first(one) for one in (value, rows, shares)]
    found = _samples((shapes, chunk), *inputs)
    found = found.reshape(images, -1, *found.shape[1:])
    return found.swapaxes(1, 2).astype(value.dtype)


def _heads_first(x: jax.Array) -> jax.Array:
    """`[B, N, H, ...]` -> `[B * H, N, ...]`."""
    x = x.swapaxes(1, 2)
    return x.reshape(-1, *x.shape[2:])


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

    locations `[..., L, P, 2]`, weights `[..., L, P]` as of `deformable_attention`. Returns (rows
    int32 `[..., L * P]`, shares float32 `[..., L * P, 4]`, 0 more than a cell outside).
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
    leading = places.shape[:-2]
    return places.reshape(*leading, -1), shares.reshape(*leading, -1, 4)


def _neighbours(location: jax.Array, size: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(index of the lower neighbour, from 0 for the padding; distance from it; within a cell)."""
    position = location * size.astype(np.float32) - 0.5
    inside = (position > -1) & (position < size)
    position = jnp.where(inside, position, 0.0)  # no index from NaN or infinity
    low = jnp.floor(position)
    return low.astype(jnp.int32) + 1, position - low, inside


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _samples(how, value: jax.Array, rows: jax.Array, shares: jax.Array) -> jax.Array:
    """float32 `[H, Q, D]`: the sum over K samples and 4 corners of `corner_table` of value `[H, T,
    D]` at `rows` `[H, Q, K]`, times `shares` `[H, Q, K, 4]`; H: the heads of all images. how:
    (level_shapes, chunk)."""
    level_shapes, chunk = how

    def one_head(value, rows, shares, chunk):
        table = corner_table(value, level_shapes)

        def some(_, queries):
            rows, shares = queries
            return None, jnp.sum(_rows_of(table, rows) * shares[..., None], axis=(1, 2))

        return _scan(some, None, (rows, shares), chunk=chunk)[1]

    return _by_platform(one_head, chunk, (value, rows, shares))


def _rows_of(table: jax.Array, rows: jax.Array) -> jax.Array:
    return table.at[rows].get(mode="promise_in_bounds").astype(jnp.float32)


def _forward(how, value, rows, shares):
    return _samples(how, value, rows, shares=shares), (value, rows, shares)


def _backward(how, residuals, gradient):
    level_shapes, chunk = how

    def one_head(value, rows, shares, gradient, chunk):
        table = corner_table(value, level_shapes)

        def some(to_table, queries):
            rows, shares, gradient = queries
            along = gradient[:, None, None, :]
            to_shares = jnp.sum(_rows_of(table, rows) * along, axis=-1)
            added = shares[..., None] * along
            return to_table.at[rows].add(added, mode="promise_in_bounds"), to_shares

        # float32: many samples may add to a cell, and a bfloat16 sum stops growing at 256 terms.
        zeros = jnp.zeros(table.shape, jnp.float32)
        to_table, to_shares = _scan(some, zeros, (rows, shares, gradient), chunk=chunk)
        return _table_to_value(to_table, level_shapes).astype(value.dtype), to_shares

    to_value, to_shares = _by_platform(one_head, chunk, (*residuals, gradient))
    return to_value, None, to_shares


_samples.defvjp(_forward, _backward)


def _table_to_value(to_table: jax.Array, level_shapes: Shapes) -> jax.Array:
    """The transpose of `corner_table`, `[N, 4, D]` -> `[T, D]`: cells add up their four places."""
    cells = sum(height * width for height, width in level_shapes)
    value = jax.ShapeDtypeStruct((cells, to_table.shape[-1]), to_table.dtype)
    return jax.linear_transpose(lambda x: corner_table(x, level_shapes), value)(to_table)[0]


def _by_platform(one_head: Callable, chunk: int | None, arrays: tuple[jax.Array, ...]) -> Any:
    """`one_head(*arrays, chunk)` of every head, one after another in chunks or all at once."""

    def in_turn(*arrays, chunk=CPU_CHUNK):
        return jax.lax.map(lambda one: one_head(*one, chunk), arrays)

    def at_once(*arrays):
        return jax.vmap(lambda *one: one_head(*one, 0))(*arrays)

    if chunk is None:
        return jax.lax.platform_dependent(*arrays, cpu=in_turn, default=at_once)
    return in_turn(*arrays, chunk=chunk) if chunk else at_once(*arrays)


def _scan(step: Callable, carry: Any, queries: tuple[jax.Array, ...], *, chunk: int) -> Any:
    """`jax.lax.scan` of `step` over the queries, `chunk` at a time (0: all), their results in one
    array. The last chunk is filled up with zeros: no share of any row."""
    count = queries[0].shape[0]
    if not 0 < chunk < count:
        return step(carry, queries)
    parts = [_in_chunks(one, chunk) for one in queries]
    carry, found = jax.lax.scan(step, carry, parts)
    return carry, found.reshape(-1, *found.shape[2:])[:count]


def _in_chunks(x: jax.Array, chunk: int) -> jax.Array:
    padding = [(0, -x.shape[0] % chunk)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding).reshape(-1, chunk, *x.shape[1:])
