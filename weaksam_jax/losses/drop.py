"""Dropping of samples whose loss is so large that their pseudo label is probably wrong.

RoI drop: equations 1-2 of the paper; query drop: equations 3-4 and appendix C. Both return masks of
constants: no gradient flows through them.
"""

import jax
import jax.numpy as jnp


def roi_drop(
    cls_loss: jax.Array,
    reg_loss: jax.Array,
    foreground: jax.Array,
    valid: jax.Array,
    tau_cls: float,
    tau_reg: float,
    *,
    rule: str = "either",
    drop_background: bool = True,
) -> jax.Array:
    """The drop signal d of equation 1: keep bool `[R]` (False also where not `valid`).

    cls_loss, reg_loss: float `[R]`, the raw losses of each RoI (cross-entropy; L1 summed over the
    four weighted deltas); foreground, valid: bool `[R]`. A background RoI has no box loss: its
    reg_loss counts as 0. A loss equal to its threshold is kept.

    rule: "either" (the paper: dropped when either loss is above its threshold) or "both" (the
    official code: dropped only when both are, so background never is). drop_background=False keeps
    all background under "either". Raises ValueError for another rule.
    """
    cls_loss, reg_loss = jax.lax.stop_gradient((jnp.asarray(cls_loss), jnp.asarray(reg_loss)))
    foreground, valid = jnp.asarray(foreground), jnp.asarray(valid)
    high_cls = cls_loss > tau_cls
    high_reg = foreground & (reg_loss > tau_reg)
    if rule == "either":
        drop = high_cls | high_reg
    elif rule == "both":
        drop = high_cls & high_reg
    else:
        raise ValueError(f"rule must be 'either' or 'both', not {rule!r}")
    if not drop_background:
        drop = drop & foreground
    return valid & ~drop


def query_drop(cls_loss: jax.Array, matched: jax.Array, percentile: float = 90) -> jax.Array:
    """The drop signal of equation 3: keep bool `[Q]`, False for matched queries of largest loss.

    cls_loss: float `[Q]`, unweighted classification losses; matched: bool `[Q]`, queries with an
    object ("things", appendix C), ranked among themselves; all others are kept. Kept is what is
    <= the value at the percentile, taken as the smallest loss with at least `percentile` % of the
    matched ones at or below it: floor((100 - percentile) % of n) of n distinct losses go, and none
    when n is small (fewer than 10 at 90).
    """
    cls_loss = jax.lax.stop_gradient(jnp.asarray(cls_loss))
    matched = jnp.asarray(matched)
    # Whole hundredths of a percent: in float32 (1 - 0.9) * 10 is below 1.
    hundredths = 10_000 - round(100 * percentile)
    dropped = jnp.sum(matched.astype(jnp.int32)) * hundredths // 10_000
    falling = -jnp.sort(jnp.where(matched, -cls_loss, jnp.inf))
    limit = falling[jnp.minimum(dropped, falling.shape[0] - 1)]
    return ~matched | (cls_loss <= limit) | (dropped == 0)
