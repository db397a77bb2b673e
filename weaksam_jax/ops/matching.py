"""Which box answers for which object: IoU matching and pyramid levels, with static shapes.

All functions take one image; `jax.vmap` them over a batch.
"""

import jax
import jax.numpy as jnp

from weaksam_jax.boxes import area, iou

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1


def match_by_iou(
    boxes: jax.Array,
    targets: jax.Array,
    target_valid: jax.Array,
    foreground_iou: float,
    background_iou: float,
    best_per_target: bool = False,
    top_k: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Matches boxes `[N, 4]` to targets `[G, 4]` (`target_valid` bool `[G]`).

    Returns (label int32 `[N]`: 1 foreground, 0 background, -1 ignored; index int32 `[N]`: the
    target of highest IoU, the first one among equals). Foreground: IoU >= foreground_iou;
    background: IoU < background_iou; ignored between the two. best_per_target: the boxes of highest
    IoU with a target are foreground too, unless they do not overlap it (Faster R-CNN §3.1.2; they
    keep their own best target as index, as in torchvision and detectron2). top_k: foreground boxes
    must be among the k best of some target, every other one is background (k = 3 in WeakSAM's
    official code, docs/provenance/retraining.md, section 1; None: the standard rule).
    """
    overlap = jnp.where(target_valid[None, :], iou(boxes, targets), -1.0)
    best = jnp.max(overlap, axis=1, initial=-1.0)
    index = jnp.argmax(overlap, axis=1).astype(jnp.int32)
    label = jnp.where(best >= foreground_iou, FOREGROUND, IGNORED)
    label = jnp.where(best < background_iou, BACKGROUND, label)
    if best_per_target:
        highest = jnp.max(overlap, axis=0)
        is_best = jnp.any((overlap == highest[None, :]) & (highest[None, :] > 0), axis=1)
        label = jnp.where(is_best, FOREGROUND, label)
    if top_k is not None:
        chosen = _among_best(overlap, target_valid, min(top_k, boxes.shape[0]))
        label = jnp.where((label == FOREGROUND) & ~chosen, BACKGROUND, label)
    return label.astype(jnp.int32), index


def _among_best(overlap: jax.Array, target_valid: jax.Array, k: int) -> jax.Array:
    """bool `[N]`: the box is one of the k best (ties: lower index) of some valid target."""
    _, best = jax.lax.top_k(overlap.T, k)
    votes = jnp.broadcast_to(target_valid[:, None], best.shape).astype(jnp.int32)
    return jnp.zeros(overlap.shape[0], jnp.int32).at[best].add(votes) > 0


def pyramid_level(
    boxes: jax.Array, levels: int, canonical_size: float = 224.0, canonical_level: int = 2
) -> jax.Array:
    """Level index int32 `[...]` of each box, 0 = finest (FPN, equation 1).

    floor(canonical_level + log2(sqrt(area) / canonical_size)), clamped to [0, levels). With P2 as
    index 0, the paper's k0 = 4 is index 2.
    """
    side = jnp.sqrt(jnp.maximum(area(boxes), 1e-6))
    level = jnp.floor(canonical_level + jnp.log2(side / canonical_size + 1e-8))
    return jnp.clip(level, 0, levels - 1).astype(jnp.int32)
