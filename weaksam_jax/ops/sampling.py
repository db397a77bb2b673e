"""Random choice of training samples with static shapes."""

import jax
import jax.numpy as jnp

from weaksam_jax.ops.matching import BACKGROUND, FOREGROUND
from weaksam_jax.ops.ranking import top_k


def sample_balanced(
    label: jax.Array, key: jax.Array, count: int, foreground_fraction: float
) -> tuple[jax.Array, jax.Array]:
    """Chooses up to `count` of N candidates uniformly (Fast R-CNN §2.3, Faster R-CNN §3.1.3).

    label: int `[N]`, 1 foreground, 0 background, anything else never chosen. At most
    int(count * foreground_fraction) foreground; background fills up the rest. Returns (index int32
    `[count]`, foreground first; valid bool `[count]`, False where there were too few candidates).
    """
    total = label.shape[0]
    random = jax.random.uniform(key, (total,))  # in [0, 1)
    foreground = _random_subset(
        label == FOREGROUND, random, int(count * foreground_fraction), total=total
    )
    priority = jnp.where(label == BACKGROUND, random, -1.0)
    priority = jnp.where(foreground, 2.0 + random, priority)
    best, index = top_k(priority, min(count, total))
    padding = (0, count - best.shape[0])
    return jnp.pad(index.astype(jnp.int32), padding), jnp.pad(best >= 0, padding)


def _random_subset(member: jax.Array, random: jax.Array, limit: int, total: int) -> jax.Array:
    """bool `[N]`: at most `limit` members, those of the largest random numbers."""
    limit = min(limit, total)
    best, index = top_k(jnp.where(member, random, -1.0), limit)
    return jnp.zeros(total, bool).at[index].set(best >= 0)
