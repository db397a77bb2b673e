"""Where tokens lie, in float32: padding, sine codes, reference points, proposals of the grid.

The tokens of an image are the cells of L maps, level by level, row by row: T in all. `Shapes` are
the maps' (height, width), numbers of the program. mmdetection's conventions (3.1,
`models/layers/transformer`), which are those of Deformable DETR.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Shapes = tuple[tuple[int, int], ...]

SMALLEST_PROPOSAL = 0.05  # side of a proposal at the first level; doubled at each further one
PROPOSAL_MARGIN = 0.01  # proposals nearer to 0 or 1 are none


class Extent(NamedTuple):
    """What of each map is image and not padding: for each level rows bool `[B, h]` and columns
    bool `[B, w]`."""

    rows: tuple[jax.Array, ...]
    columns: tuple[jax.Array, ...]

    def valid(self) -> jax.Array:
        """Tokens in the image, bool `[B, T]`."""
        pairs = zip(self.rows, self.columns, strict=True)
        inside = [rows[:, :, None] & columns[:, None, :] for rows, columns in pairs]
        return jnp.concatenate([one.reshape(len(one), -1) for one in inside], axis=1)

    def counts(self) -> jax.Array:
        """Cells in the image along (x, y), float32 `[B, L, 2]`."""
        pairs = zip(self.columns, self.rows, strict=True)
        both = [jnp.stack([one.sum(1) for one in pair], -1) for pair in pairs]
        return jnp.stack(both, 1).astype(jnp.float32)

    def ratios(self) -> jax.Array:
        """The image's share of each map along (x, y), float32 `[B, L, 2]`."""
        pairs = zip(self.columns, self.rows, strict=True)
        sides = np.asarray([[one.shape[1] for one in pair] for pair in pairs], np.float32)
        return self.counts() / sides


def image_extent(size: jax.Array, padded: tuple[int, int], shapes: Shapes) -> Extent:
    """The extent of images of (height, width) `size` `[B, 2]` in a padded size.

    Nearest down-sampling: cell i of n stands for the pixel floor(i * side / n).
    """

    def inside(axis: int, shape: tuple[int, int]) -> jax.Array:
        pixels = np.arange(shape[axis]) * padded[axis] // shape[axis]
        return pixels[None] < size[:, axis : axis + 1]

    return Extent(tuple(inside(0, one) for one in shapes), tuple(inside(1, one) for one in shapes))


def sine_code(share: jax.Array, channels: int, temperature: float) -> jax.Array:
    """`[...]` in 0..1 -> `[..., channels]`, sine and cosine in turn, of wave lengths from 1 to
    `temperature` (Vaswani et al. 2017, §3.5, on an angle of 2 pi share)."""
    powers = 2 * (np.arange(channels // 2)) / channels
    angle = (share * (2 * np.pi))[..., None] / (temperature**powers).astype(np.float32)
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1).reshape(*share.shape, channels)


def token_codes(
    extent: Extent, channels: int, temperature: float, offset: float = 0.0
) -> jax.Array:
    """The sine code of every token, float32 `[B, T, channels]`: first of y, then of x.

    Counted from 1 (+ offset) in cells of the image and divided by their number, so that the code
    does not depend on the padding.
    """
    return jnp.concatenate(
        [
            _map_code(*pair, channels // 2, temperature=temperature, offset=offset)
            for pair in zip(extent.rows, extent.columns, strict=True)
        ],
        axis=1,
    )


def _map_code(
    rows: jax.Array, columns: jax.Array, channels: int, *, temperature: float, offset: float
):
    batch, height, width = *rows.shape, columns.shape[1]
    y = _share(rows, offset)[:, :, None] * columns[:, None, :]
    x = _share(columns, offset)[:, None, :] * rows[:, :, None]
    codes = [sine_code(one, channels, temperature) for one in (y, x)]
    return jnp.concatenate(codes, -1).reshape(batch, height * width, 2 * channels)


def _share(inside: jax.Array, offset: float) -> jax.Array:
    count = jnp.cumsum(inside.astype(jnp.float32), axis=1)
    return (count + offset) / (count[:, -1:] + 1e-6)


def reference_points(extent: Extent, shapes: Shapes) -> jax.Array:
    """Centres of the tokens in shares of each level that they read, float32 `[B, T, L, 2]`, (x, y):
    of the padded map, of which the image may be a part."""
    ratios = extent.ratios()
    centres = _centres(shapes, ratios * _sides(shapes))
    return centres[:, :, None] * ratios[:, None]


def grid_proposals(extent: Extent, shapes: Shapes) -> tuple[jax.Array, jax.Array]:
    """A box for each token: (its logits float32 `[B, T, 4]`, infinite where there is none; usable
    bool `[B, T]`: in the image and not at its edge).

    (centre x, centre y, width, height) in shares of the image; the side doubles at each level.
    """
    centres = _centres(shapes, extent.counts())
    sides = SMALLEST_PROPOSAL * 2.0 ** level_of_token(shapes).astype(np.float32)
    sides = jnp.broadcast_to(sides[None, :, None], centres.shape)
    boxes = jnp.concatenate([centres, sides], -1)
    clear = (boxes > PROPOSAL_MARGIN) & (boxes < 1 - PROPOSAL_MARGIN)
    usable = jnp.all(clear, -1) & extent.valid()
    boxes = jnp.where(usable[..., None], boxes, 0.5)
    return jnp.where(usable[..., None], jnp.log(boxes / (1 - boxes)), jnp.inf), usable


def _centres(shapes: Shapes, sides: jax.Array) -> jax.Array:
    """(cell + 0.5) / side, (x, y), float32 `[B, T, 2]`; sides `[B, L, 2]`."""
    cells = [np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1) for h, w in shapes]
    cells = np.concatenate([one.reshape(-1, 2) for one in cells]).astype(np.float32)
    return (cells + 0.5) / sides[:, level_of_token(shapes)]


def level_of_token(shapes: Shapes) -> np.ndarray:
    """int `[T]`."""
    return np.repeat(np.arange(len(shapes)), [height * width for height, width in shapes])


def _sides(shapes: Shapes) -> np.ndarray:
    """(width, height) of each level, float32 `[L, 2]`."""
    return np.asarray(shapes, np.float32)[:, ::-1]


def inverse_sigmoid(share: jax.Array, epsilon: float) -> jax.Array:
    """log(x / (1 - x)) of x in 0..1, each of both kept above `epsilon`."""
    share = jnp.clip(share, 0.0, 1.0)
    return jnp.log(jnp.maximum(share, epsilon) / jnp.maximum(1 - share, epsilon))
