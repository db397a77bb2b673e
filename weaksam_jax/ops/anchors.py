"""Anchors of a feature pyramid, made in the program from the indices of the cells: those of a large
image would be megabytes of constants in it."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def cell_anchors(
    sizes: Sequence[float], ratios: Sequence[float], rounded: bool = False
) -> np.ndarray:
    """Anchors of one cell around the origin: float32 `[len(sizes) * len(ratios), 4]`.

    sizes: square roots of the areas, in pixels; ratios: height / width. Sizes vary slowest.
    rounded: corners to whole pixels, halves to even ones (torchvision; detectron2 does not round).
    """
    size = np.repeat(np.asarray(sizes, np.float64), len(ratios))
    ratio = np.tile(np.asarray(ratios, np.float64), len(sizes))
    width = size / np.sqrt(ratio)
    half = np.stack([width, width * ratio], axis=1) / 2
    cells = np.concatenate([-half, half], axis=1).astype(np.float32)
    return np.round(cells) if rounded else cells


def level_anchors(
    height: int,
    width: int,
    stride: int | tuple[int, int],
    cells: np.ndarray,
    offset: float = 0.0,
) -> jax.Array:
    """Anchors of one map `[height, width]`: float32 `[height * width * A, 4]`, row-major, the A
    anchors `cells` of a cell together. Centres lie at (column + offset) * stride; stride: of rows
    and columns, or (of rows, of columns)."""
    rows, columns = map(float, np.broadcast_to(stride, 2))
    return _grid(cells, (height, width), step=(rows, columns), offset=offset)


@functools.partial(jax.jit, static_argnames=("shape", "step", "offset"))
def _grid(cells, shape, step, offset):
    """See `level_anchors`."""
    (height, width), (rows, columns) = shape, step
    x = (jnp.arange(width, dtype=jnp.float32) + offset) * columns
    y = (jnp.arange(height, dtype=jnp.float32) + offset) * rows
    y, x = jnp.meshgrid(y, x, indexing="ij")
    centre = jnp.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
    return (centre + jnp.asarray(cells, jnp.float32)).reshape(-1, 4)


def pyramid_anchors(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    offset: float = 0.0,
    rounded: bool = False,
) -> list[jax.Array]:
    """Anchors of every level, finest first; `sizes[l]` are the anchor sizes of level l.

    rounded (torchvision): the corners of a cell's anchors are whole pixels, and the cells of a map
    lie padded side // map side pixels apart. That is the stride but where the padded side is no
    multiple of it: P6 of 96 rows has two, 48 apart and not 64.
    """
    steps = list(strides)
    if rounded:
        rows, columns = (side * strides[0] for side in shapes[0])
        steps = [(rows // height, columns // width) for height, width in shapes]
    return [
        level_anchors(
            height, width, stride, cells=cell_anchors(size, ratios, rounded), offset=offset
        )
        for (height, width), stride, size in zip(shapes, steps, sizes, strict=True)
    ]
