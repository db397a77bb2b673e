"""Focal loss of independent classes (Lin et al. 2017), and what matching makes of it.

optax has the same loss over two stacked logarithms; this form needs one of them and one sigmoid.
"""

import jax
import jax.numpy as jnp

ALPHA, GAMMA = 0.25, 2.0


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log of the probability of what is so, float32 of the shape of logits; labels: bool."""
    logits = logits.astype(jnp.float32)
    return jax.nn.softplus(jnp.where(labels, -logits, logits))


def focal_loss(
    logits: jax.Array, labels: jax.Array, alpha: float = ALPHA, gamma: float = GAMMA
) -> jax.Array:
    """Equation 5 of the focal loss paper for each logit, float32.

    logits: float `[...]`; labels: bool `[...]`. alpha weighs the labels that are True, 1 - alpha
    the others.
    """
    logits = logits.astype(jnp.float32)
    against = jnp.where(labels, -logits, logits)
    share = jax.nn.sigmoid(against)  # 1 - p_t without cancellation
    weight = jnp.where(labels, alpha, 1 - alpha)
    power = int(gamma) if gamma == int(gamma) else gamma  # a product instead of a logarithm
    return weight * share**power * jax.nn.softplus(against)


def focal_cost(logits: jax.Array, alpha: float = ALPHA, gamma: float = GAMMA) -> jax.Array:
    """What it costs to find each class in a query rather than nothing: the difference of its focal
    losses with the label True and False, float32 `[...]` (Deformable DETR's matching)."""
    found = focal_loss(logits, jnp.bool_(True), alpha, gamma=gamma)
    return found - focal_loss(logits, jnp.bool_(False), alpha, gamma=gamma)
