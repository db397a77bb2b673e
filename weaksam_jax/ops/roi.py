"""RoI pooling: Caffe's max pooling (Fast R-CNN) and RoIAlign (Mask R-CNN) on one map or a pyramid.

All functions take one image; `jax.vmap` them over a batch. Padding boxes (zeros) are harmless.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from weaksam_jax.ops.bins import max_of_bins

# RoIs that RoIAlign pools at a time: on a CPU so few that their samples stay in its caches.
CPU_CHUNK, CHUNK = 32, 512


def roi_pool(
    features: jax.Array,
    boxes: jax.Array,
    spatial_scale: float,
    output_size: int = 7,
    rounded: bool = True,
) -> jax.Array:
    """Max RoI pooling with Caffe's rounding (Fast R-CNN §2.1; `ROIPool` of OICR, PCL and MIST).

    features: float `[H, W, C]`, rectified or not. boxes: `[R, 4]` in image pixels; spatial_scale:
    1 / stride. Returns `[R, output_size, output_size, C]`.

    A box is rounded half up on the map, its last row and column included (width = x2 - x1 + 1 cells
    and at least 1), cut into overlapping bins `[floor(i w / n), ceil((i + 1) w / n))`, and clipped
    to the map. An empty bin is 0 and has no gradient; otherwise the gradient goes to the first
    maximum in row-major order. Boxes get no gradient. rounded=False: mmcv's form (WeakSAM's
    official OICR, docs/provenance/mil.md, section 1), which cuts the box as it is: bins
    `[floor(x1 + i w / n), ceil(x1 + (i + 1) w / n))`.
    """
    features = jnp.asarray(features)
    height, width = features.shape[:2]
    corners = jax.lax.stop_gradient(boxes) * spatial_scale
    edges = _exact_edges
    if rounded:
        corners, edges = jnp.floor(corners + 0.5).astype(jnp.int32), _bin_edges
    rows = edges(corners[:, 1], corners[:, 3], output_size, height)
    columns = edges(corners[:, 0], corners[:, 2], output_size, width)
    usual = tuple(-(-(side + 1) // output_size) + 1 for side in (height, width))
    return max_of_bins(features, rows, columns, usual=usual)


def _exact_edges(low: jax.Array, high: jax.Array, bins: int, limit: int) -> jax.Array:
    """As `_bin_edges`, of corners in cells that are not rounded; an inverted box has empty bins."""
    size = jnp.maximum(high - low, 0)[:, None]
    index = jnp.arange(bins)[None, :]
    start = jnp.floor(low[:, None] + index * size / bins)
    stop = jnp.where(size > 0, jnp.ceil(low[:, None] + (index + 1) * size / bins), start)
    return jnp.clip(jnp.stack([start, stop]), 0, limit).astype(jnp.int32)


def _bin_edges(low: jax.Array, high: jax.Array, bins: int, limit: int) -> jax.Array:
    """First and one-past-last cell of each bin, int32 `[2, R, bins]`, clipped to `[0, limit]`.

    Integer arithmetic: float32 `ceil((i + 1) * w / 7)` is wrong under XLA, which multiplies by 1/7.
    """
    size = jnp.maximum(high - low + 1, 1)[:, None]
    index = jnp.arange(bins)[None, :]
    start = low[:, None] + (index * size) // bins
    stop = low[:, None] - (-(index + 1) * size) // bins
    return jnp.clip(jnp.stack([start, stop]), 0, limit)


def _full(array: jax.Array) -> jnp.dtype:
    return jnp.promote_types(array.dtype, jnp.float32)


def roi_align(
    features: jax.Array,
    boxes: jax.Array,
    spatial_scale: float,
    output_size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    chunk: int | None = None,
) -> jax.Array:
    """RoIAlign (Mask R-CNN §3; torchvision's formula): features `[H, W, C]`, boxes `[R, 4]` in
    image pixels, returns `[R, output_size, output_size, C]`. See `roi_align_pyramid`."""
    level, stride = jnp.zeros(boxes.shape[0], jnp.int32), 1.0 / spatial_scale
    return roi_align_pyramid(
        [features],
        [stride],
        boxes,
        level=level,
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        chunk=chunk,
    )


def roi_align_pyramid(
    levels: Sequence[jax.Array],
    strides: Sequence[float],
    boxes: jax.Array,
    level: jax.Array,
    *,
    output_size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    chunk: int | None = None,
) -> jax.Array:
    """RoIAlign where each box reads one level of a pyramid: one gather from the flattened pyramid.

    levels: L maps `[H_l, W_l, C]`; strides: their strides in pixels; boxes: `[R, 4]` in image
    pixels; level: int `[R]`, index into `levels`. Returns `[R, output_size, output_size, C]` in the
    type of the maps (computed in float32 at least), each cell the mean of `sampling_ratio`²
    bilinear samples. aligned: half-pixel shift and no minimal size; otherwise sides are at least
    one cell (torchvision's meaning). Gradients flow to the maps, not to the boxes, and add up in
    float32. chunk: RoIs at a time, 0: all at once, None: `CPU_CHUNK` on a CPU, `CHUNK` elsewhere.
    The cost is that of one level, whatever L. Raises ValueError for `sampling_ratio` < 1 (the
    adaptive grid has no static shape).

    detectron2 takes ceil(side / output_size) samples instead, sides in cells. On smooth maps of
    standard deviation 1, RoIs of 20 to 200 pixels at their levels, 2 samples differ from that by
    0.02 in the mean and 0.16 at most (tests/ops/test_roi.py): by nothing at sides of 7 to 14 cells,
    0.01 below and 0.03 above; 1 sample would by 0.11 and 0.8, a half-pixel shift by 0.19 and 1.1.
    """
    if sampling_ratio < 1:
        raise ValueError("sampling_ratio must be at least 1")
    flat = jnp.concatenate([one.reshape(-1, one.shape[-1]) for one in levels])
    sizes = np.array([one.shape[:2] for one in levels], np.int32)
    offsets = np.concatenate([[0], np.cumsum(sizes.prod(1))[:-1]]).astype(np.int32)
    where = (
        jax.lax.stop_gradient(boxes) / jnp.asarray(strides, boxes.dtype)[level][:, None],
        jnp.asarray(sizes)[level],
        jnp.asarray(offsets)[level],
    )
    grid = _Grid(output_size, sampling_ratio, aligned=aligned, chunk=chunk)
    return _aligned(grid, flat, where)


class _Grid(NamedTuple):
    """How RoIAlign samples; see `roi_align_pyramid`."""

    output_size: int
    sampling_ratio: int
    aligned: bool
    chunk: int | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _aligned(grid: _Grid, flat, where):
    """RoIs from a pyramid `[cells, C]` in its type. The gradient is float32 until all boxes are
    added up, and so a map of bfloat16 needs no copy in float32."""
    return _by_platform(_align_chunks, grid, (flat, where)).astype(flat.dtype)


def _align_forward(grid, flat, where):
    return _aligned(grid, flat, where), (flat, where)


def _align_backward(grid, residuals, gradient):
    flat, where = residuals
    total = _by_platform(_to_maps, grid, (flat, where, gradient))
    return total.astype(flat.dtype), None


def _to_maps(grid: _Grid, flat, where, gradient):
    """The gradient of the pyramid, float32 at least."""
    # Of other maps, for pooling is linear: these are never made.
    maps = jnp.zeros(flat.shape, _full(flat))
    _, back = jax.vjp(lambda maps: _align_chunks(grid, maps, where), maps)
    return back(gradient.astype(maps.dtype))[0]


def _by_platform(form: Callable, grid: _Grid, arrays: tuple) -> jax.Array:
    """`form(grid, *arrays)` with the number of RoIs at a time that fits what computes."""
    if grid.chunk is not None:
        return form(grid, *arrays)
    cpu, other = (
        functools.partial(form, grid._replace(chunk=chunk)) for chunk in (CPU_CHUNK, CHUNK)
    )
    return jax.lax.platform_dependent(*arrays, cpu=cpu, default=other)


_aligned.defvjp(_align_forward, _align_backward)


def _align_chunks(grid: _Grid, flat, where):
    """`_align_boxes`, `grid.chunk` boxes at a time."""
    count = where[0].shape[0]
    if grid.chunk <= 0 or count <= grid.chunk:
        return _align_boxes(flat, *where, grid=grid)
    chunks = jax.tree.map(lambda x: _in_chunks(x, grid.chunk), where)
    pooled = jax.lax.map(jax.checkpoint(lambda one: _align_boxes(flat, *one, grid=grid)), chunks)
    return pooled.reshape(-1, *pooled.shape[2:])[:count]


def _in_chunks(x: jax.Array, chunk: int) -> jax.Array:
    """`[n, ...]` as `[ceil(n / chunk), chunk, ...]`, filled up with the last row."""
    padding = [(0, -x.shape[0] % chunk)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding, mode="edge").reshape(-1, chunk, *x.shape[1:])


def _align_boxes(flat, boxes, sizes, offsets, grid):
    """Pools boxes `[r, 4]` (in cells) from maps of `sizes` `[r, 2]` at `offsets` of `flat`, in
    float32 at least."""
    shift = 0.5 if grid.aligned else 0.0
    low, extent = boxes[:, :2] - shift, boxes[:, 2:] - boxes[:, :2]
    if not grid.aligned:
        extent = jnp.maximum(extent, 1.0)
    samples = grid.output_size * grid.sampling_ratio
    steps = (jnp.arange(samples, dtype=boxes.dtype) + 0.5) / samples
    x_cells, x_weights = _bilinear(low[:, :1] + steps * extent[:, :1], sizes[:, 1:])
    y_cells, y_weights = _bilinear(low[:, 1:] + steps * extent[:, 1:], sizes[:, :1])
    pooled = 0.0
    for y_cell, y_weight in zip(y_cells, y_weights, strict=True):
        for x_cell, x_weight in zip(x_cells, x_weights, strict=True):
            row = offsets[:, None] + y_cell * sizes[:, 1:]
            values = flat[row[:, :, None] + x_cell[:, None, :]].astype(_full(flat))
            weight = y_weight[:, :, None] * x_weight[:, None, :]
            pooled = pooled + values * weight[..., None].astype(values.dtype)
    side, ratio = grid.output_size, grid.sampling_ratio
    return pooled.reshape(-1, side, ratio, side, ratio, flat.shape[-1]).mean((2, 4))


def _bilinear(position, size):
    """Two neighbouring cells and their weights, `[r, samples]` each; 0 more than a cell outside."""
    inside = (position >= -1) & (position <= size)
    position = jnp.clip(position, 0, size - 1)
    low = jnp.floor(position).astype(jnp.int32)
    fraction = position - low
    high = jnp.minimum(low + 1, size - 1)
    return (low, high), (inside * (1 - fraction), inside * fraction)
