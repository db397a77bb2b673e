"""RoI drop, equations 1-2 of the paper: RoIs whose loss is so large that their pseudo label is
probably wrong are not trained on. Beside it query drop, which `weaksam_jax.losses.query_drop` has.

The masks are constants: no gradient flows through them.
"""

import jax
import jax.numpy as jnp

from weaksam_jax.losses.query_drop import query_drop

__all__ = ["query_drop", "roi_drop"]


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
