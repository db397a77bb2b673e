"""Maxima of many rectangles of one map, without a loop over its cells.

Four windows whose sides are powers of two cover a rectangle, and the maxima of all such windows are
made once a map: a sparse table (Bender and Farach-Colton 2000) along both axes.
"""

import functools
import math

import jax
import jax.numpy as jnp

PART = 128  # channels whose tables are in memory at a time; TPUs work on 128
ALIGNED = 16  # rows of a TPU's memory tiles, of 16 bits: what begins elsewhere is copied slowly
TILE = 128  # side of a TPU's matrix unit


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def max_of_bins(
    features: jax.Array, rows: jax.Array, columns: jax.Array, usual: tuple[int, int]
) -> jax.Array:
    """Maximum of every bin, 0 of an empty one: `[R, n, m, C]` of features `[H, W, C]`.

    rows, columns: int32 `[2, R, n]` and `[2, R, m]`, the first and one-past-last cell of each bin.
    usual: rows and columns that a bin rarely exceeds; those that do cost more time, and the tables
    end there. The gradient of a bin goes to the first of its maxima in row-major order.
    """
    return _in_parts(features, rows, columns, usual=usual)[0]


def _forward(features, rows, columns, usual):
    found = _in_parts(features, rows, columns, usual=usual)
    return found[0], (features, rows, columns, found[1])


def _in_parts(features, rows, columns, usual):
    """`_maxima`, some channels at a time."""
    maxima = functools.partial(_maxima, rows=rows, columns=columns, usual=usual)
    height, width, channels = features.shape
    if channels <= PART:
        return maxima(features)
    filled = jnp.pad(features, ((0, 0), (0, 0), (0, -channels % PART)))
    parts = jnp.moveaxis(filled.reshape(height, width, -1, PART), 2, 0)
    found = jax.lax.map(maxima, parts)
    return jax.tree.map(lambda x: _side_by_side(x)[..., :channels], found)


def _side_by_side(parts: jax.Array) -> jax.Array:
    """`[P, ..., c]` as `[..., P * c]`."""
    parts = jnp.moveaxis(parts, 0, -2)
    return parts.reshape(*parts.shape[:-2], -1)


def _maxima(features, rows, columns, usual):
    """Maxima `[R, n, m, C]` of bins (0: empty) and the cells where they are (`_cells`)."""
    height, width, channels = features.shape
    levels = tuple(_levels(most, side) for most, side in zip(usual, (height, width), strict=True))
    tables = _tables(features, levels)
    across = math.prod(tables[0].shape[2:4])  # entries of a row of the map
    tables = [x.reshape(-1, channels) for x in tables]
    level_y, level_x = _level(rows, levels[0]), _level(columns, levels[1])

    def window(y, x):
        y = (level_y * height + jnp.clip(y, 0, height - 1)) * across
        x = level_x * (across // levels[1]) + jnp.clip(x, 0, width - 1)
        place = y[:, :, None] + x[:, None, :]
        return tuple(table.at[place].get(mode="promise_in_bounds") for table in tables)

    tops = rows[0], rows[1] - (1 << level_y)
    lefts = columns[0], columns[1] - (1 << level_x)
    best = functools.reduce(_first_best, [window(y, x) for y in tops for x in lefts])
    count_y, count_x = _windows(rows, level_y), _windows(columns, level_x)

    def visit(turn, best):
        y = jnp.minimum(rows[0] + ((turn // count_x) << level_y), tops[1])
        x = jnp.minimum(columns[0] + ((turn % count_x) << level_x), lefts[1])
        return _first_best(best, window(y, x))

    more = jnp.where((count_y > 2) | (count_x > 2), count_y * count_x, 0)
    value, cell = jax.lax.fori_loop(0, more, visit, best)
    return jnp.where(_empty(rows, columns), 0, value), cell


def _empty(rows, columns):
    """bool `[R, n, m, 1]`."""
    return ((rows[1] <= rows[0])[:, :, None] | (columns[1] <= columns[0])[:, None, :])[..., None]


def _levels(most: int, side: int) -> int:
    """Levels of a table so that two windows of the last cover `most` cells of `side`."""
    return max(1, min((most - 1).bit_length(), side.bit_length()))


def _level(edges: jax.Array, levels: int) -> jax.Array:
    """The longest window that fits into each interval: floor(log2(length)), 0 of an empty one."""
    return jnp.minimum(31 - jax.lax.clz(jnp.maximum(edges[1] - edges[0], 1)), levels - 1)


def _windows(edges: jax.Array, level: jax.Array) -> jax.Array:
    """How many windows, one behind the other, cover the longest interval."""
    return jnp.max(-(-(edges[1] - edges[0]) >> level), initial=0)


def _tables(features: jax.Array, levels: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Maxima `[i, H, j, W', C]` of all windows of 2^i x 2^j cells by their first cell, and the
    cells where they are (the first of equal ones). W' is W filled up; windows that would end
    outside of the map have no meaning."""
    table = features, jnp.broadcast_to(_cells(*features.shape[:2])[..., None], features.shape)
    width = -(-features.shape[1] // ALIGNED) * ALIGNED
    # Along x first: then of equal windows above one another the upper counts.
    table = _doublings(table, 1, levels[1], room=width)
    return _doublings(table, 0, levels[0], room=features.shape[0])


def _cells(height: int, width: int) -> jax.Array:
    """Integers `[H, W]` that rise in row-major order: the row in the upper half of the bits, the
    column in the lower half."""
    dtype = jnp.uint16 if max(height, width) <= 256 else jnp.uint32
    half = jnp.iinfo(dtype).bits // 2
    return (jnp.arange(height, dtype=dtype) << half)[:, None] | jnp.arange(width, dtype=dtype)


def _row_and_column(cell: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int32, what `_cells` holds."""
    half = jnp.iinfo(cell.dtype).bits // 2
    return (cell >> half).astype(jnp.int32), (cell & ((1 << half) - 1)).astype(jnp.int32)


def _doublings(windows, axis: int, levels: int, room: int):
    """Windows of 1, 2, 4, ... times the length along an axis, filled up to `room` there, stacked
    before that axis."""
    made = [windows]
    for level in range(levels - 1):
        step = 1 << level
        near, far = (
            tuple(
                jax.lax.slice_in_dim(x, start, x.shape[axis] - step + start, axis=axis)
                for x in made[-1]
            )
            for start in (0, step)
        )
        # Equal: the far window begins where the near one ends, so the near one comes first.
        cell = jnp.where(far[0] > near[0], far[1], near[1])
        made.append((jnp.maximum(near[0], far[0]), cell))
    filled = [tuple(_filled(x, axis, room) for x in one) for one in made]
    return tuple(jnp.stack(column, axis) for column in zip(*filled, strict=True))


def _filled(x: jax.Array, axis: int, room: int) -> jax.Array:
    """x with zeros at the end of an axis."""
    return jnp.pad(x, [(0, room - side if i == axis else 0) for i, side in enumerate(x.shape)])


def _first_best(one, other):
    """The larger of two (value, cell); of equal values that of the earlier cell."""
    better = (other[0] > one[0]) | ((other[0] == one[0]) & (other[1] < one[1]))
    return jnp.maximum(one[0], other[0]), jnp.where(better, other[1], one[1])


def _backward(usual, residuals, gradient):
    features, rows, columns, cell = residuals
    gradient = jnp.where(_empty(rows, columns), 0, gradient)
    side = features.shape[:2]
    total = jax.lax.platform_dependent(
        gradient,
        cell,
        tpu=functools.partial(_multiplied, side=side),
        default=functools.partial(_scattered, side=side),
    )
    return total.astype(features.dtype), None, None


def _scattered(gradient, cell, side):
    """Sums of gradients `[..., C]` by cell (`_cells`) and channel, float32 `[H, W, C]`.

    Number by number: the channels of a bin have their maxima in different cells, so that no whole
    row of channels goes to one cell."""
    (height, width), channels = side, gradient.shape[-1]
    row, column = _row_and_column(cell)
    place = (row * width + column) * channels + jnp.arange(channels)
    # float32: hundreds of boxes may add to one cell, and a bfloat16 sum stops growing at 256 terms.
    flat = jnp.zeros(height * width * channels, _full(gradient))
    return flat.at[place].add(gradient, mode="drop").reshape(height, width, channels)


def _multiplied(gradient, cell, side):
    """`_scattered` as one product a channel, rows by columns of the map, over all bins: a TPU sorts
    what it is to scatter. Sides are whole tiles of its matrix unit, which takes a third of the
    time at 150 x 250."""
    gradient, cell = (x.reshape(-1, x.shape[-1]).T for x in (gradient, cell))
    height, width = (-(-one // TILE) * TILE for one in side)
    row, column = _row_and_column(cell)
    row = row[..., None] == jnp.arange(height)
    column = column[..., None] == jnp.arange(width)
    total = jnp.einsum(
        "cnh,cnw->chw",
        row.astype(gradient.dtype),
        jnp.where(column, gradient[..., None], 0),
        preferred_element_type=_full(gradient),
    )
    return jnp.moveaxis(total[:, : side[0], : side[1]], 0, -1)


def _full(array: jax.Array) -> jnp.dtype:
    return jnp.promote_types(array.dtype, jnp.float32)


max_of_bins.defvjp(_forward, _backward)
