"""Learning-rate schedules and optimizers of the recipes."""

from collections.abc import Callable, Sequence

import jax
import optax

Factors = Callable[[str], float]


def warmed_steps(
    rate: float, warmup: int, start: float, milestones: Sequence[int]
) -> optax.Schedule:
    """Linear from `start * rate` to `rate` in `warmup` steps, then x0.1 at each milestone.

    milestones: steps counted from the start of training, as published schedules do.
    """
    ramp = optax.linear_schedule(start * rate, rate, warmup)
    after = optax.piecewise_constant_schedule(rate, {step - warmup: 0.1 for step in milestones})
    return optax.join_schedules([ramp, after], [warmup])


def adam_l2(
    schedule: optax.Schedule, weight_decay: float, decayed: Factors, rates: Factors
) -> optax.GradientTransformation:
    """Adam whose weight decay is part of the gradient (L2, as PyTorch's Adam has it; not AdamW).

    decayed, rates: from a parameter's name ("backbone/conv1_1/kernel") the factor of its decay and
    of its learning rate; a rate of 0 freezes it.
    """

    def scaled(factors: Factors, update: Callable):
        def apply(tree, params):
            def leaf(path, value, param):
                return update(value, param, factors("/".join(entry.key for entry in path)))

            return jax.tree_util.tree_map_with_path(leaf, tree, params)

        return optax.stateless(apply)

    return optax.chain(
        scaled(decayed, lambda g, p, factor: g + weight_decay * factor * p if factor else g),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(schedule),
        scaled(rates, lambda g, _, factor: factor * g),
    )
