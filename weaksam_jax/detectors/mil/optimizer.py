"""The optimizer that the MIL stage's settings describe."""

import jax
import optax

from weaksam_jax.detectors.mil.config import WsodSettings
from weaksam_jax.detectors.mil.network import is_frozen
from weaksam_jax.engine.optimizer import Factors, adam_l2, warmed_steps


def make_optimizer(settings: WsodSettings, rate: float, steps: int) -> optax.GradientTransformation:
    """Optimizer and schedule of `settings` for `steps` steps; a short trial has a short warm-up."""
    warmup = min(settings.warmup, steps // 2)
    if settings.optimizer == "adam_l2":
        schedule = warmed_steps(rate, warmup, settings.warmup_from, settings.milestones)
        tx = adam_l2(schedule, settings.weight_decay, *_factors(settings))
    else:
        schedule = optax.warmup_cosine_decay_schedule(
            rate * settings.warmup_from, rate, warmup, steps, rate / 50
        )
        tx = optax.adamw(schedule, weight_decay=settings.weight_decay, mask=_free(settings))
    return (
        tx if settings.clip is None else optax.chain(optax.clip_by_global_norm(settings.clip), tx)
    )


def _free(settings: WsodSettings):
    """Frozen parameters have no gradient; without this mask AdamW would still let them decay."""

    def mask(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not is_frozen(settings, "/".join(entry.key for entry in path)), params
        )

    return mask


def _factors(settings: WsodSettings) -> tuple[Factors, Factors]:
    """Factors of weight decay and of the rate by a parameter's name (20-wsod.md, section 3).

    Where the refinement branches have a rate of their own, the released OICR's rule for them
    replaces the rule for biases: theirs decay and are not doubled.
    """

    def refined(name: str) -> bool:
        return settings.refine_rate != 1 and name.startswith(("refine", "deltas"))

    def decayed(name: str) -> float:
        return 0.0 if name.endswith("bias") and not refined(name) else 1.0

    def rates(name: str) -> float:
        if is_frozen(settings, name):
            return 0.0
        return settings.refine_rate if refined(name) else 2.0 if name.endswith("bias") else 1.0

    return decayed, rates
