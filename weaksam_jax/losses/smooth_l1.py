"""Smooth L1 (Fast R-CNN, equation 3)."""

import jax
import jax.numpy as jnp


def smooth_l1(prediction: jax.Array, target: jax.Array, beta: float = 0.0) -> jax.Array:
    """Fast R-CNN's equation 3 summed over the last axis; below `beta` quadratic, 0: plain L1."""
    distance = jnp.abs(prediction - target)
    if beta > 0:
        near = 0.5 * distance**2 / beta
        distance = jnp.where(distance < beta, near, distance - 0.5 * beta)
    return jnp.sum(distance, axis=-1)
