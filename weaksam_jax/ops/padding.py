"""Images of several sizes in the top left corner of one canvas."""

import jax
import jax.numpy as jnp


def inside_mask(sizes: jax.Array, height: int, width: int) -> jax.Array:
    """bool `[B, height, width]`: cells of the canvas that an image covers. sizes: `[B, 2]`, its
    (height, width) in cells."""
    rows = jnp.arange(height)[None, :] < sizes[:, :1]
    columns = jnp.arange(width)[None, :] < sizes[:, 1:]
    return rows[:, :, None] & columns[:, None, :]
