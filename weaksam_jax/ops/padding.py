"""Images of several sizes, padded at the right and at the bottom to one."""

import jax
import jax.numpy as jnp


def inside_mask(sizes: jax.Array, height: int, width: int) -> jax.Array:
    """bool `[B, height, width]`: cells of the padded map that an image covers.

    sizes: `[B, 2]`, the image's (height, width) in cells.
    """
    rows = jnp.arange(height)[None, :] < sizes[:, :1]
    columns = jnp.arange(width)[None, :] < sizes[:, 1:]
    return rows[:, :, None] & columns[:, None, :]
