"""Optimizer, learning-rate schedule and frozen parameters of every detector's training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import optax

from weaksam_jax.engine.step import Params
from weaksam_jax.ranges import (
    RISING,
    Amount,
    Batch,
    Fault,
    Positive,
    Settings,
    Share,
    Steps,
    StepsOrNone,
)

# Names of a parameter from the root, ("backbone", "conv1_1", "kernel") -> whether it is frozen.
Frozen = Callable[[Sequence[str]], bool]
# Names of a parameter -> factor.
Factor = Callable[[Sequence[str]], float]


@dataclass(frozen=True)
class OptimConfig(Settings):
    """How a detector is optimised."""

    init: str | None = None
    """A safetensors file to start from: ImageNet weights of bridge.convert, or a detector's;
    "scratch": fresh weights for a backbone that is published."""
    frozen: tuple[str, ...] | None = None
    """Parts of the backbone that keep their weights, "*" for all of it [the backbone's own]."""
    optimizer: Literal["sgd", "adamw", "adam_l2"] = "sgd"
    """sgd: momentum 0.9; adam_l2: Adam whose decay is part of the gradient (PyTorch's Adam)."""
    lr: Positive = 0.02
    """Highest learning rate."""
    weight_decay: Amount = 1e-4
    """Of the weights."""
    clip: Positive | None = None
    """Largest norm of the gradient."""
    warmup: StepsOrNone = 100
    """Steps of linear warm-up; a trial shorter than twice that warms up for half its steps."""
    warmup_from: Share = 1e-3
    """The warm-up starts at this part of lr."""
    schedule: Literal["cosine", "steps"] = "cosine"
    """After the warm-up: cosine to `final_lr`, or x0.1 at each of the `milestones`."""
    final_lr: Share = 0.0
    """Part of lr at which cosine ends."""
    milestones: Annotated[tuple[Steps, ...], RISING] = ()
    """Steps, counted from the start of training."""
    steps: Steps = 1000
    """Optimizer steps of the whole training."""
    batch_size: Batch = 8
    """Images per step, over all devices."""
    micro_batches: Batch = 1
    """A device takes its share of a batch in so many parts, to need less memory."""
    checkpoint_every: Steps = 200
    """Steps between two checkpoints."""

    def misfits(self) -> Iterator[Fault]:
        if self.batch_size % self.micro_batches:
            problem = f"{self.micro_batches} do not divide a batch of {self.batch_size}"
            yield Fault("micro_batches", problem, "give a divisor of batch_size")


def make_schedule(config: OptimConfig) -> optax.Schedule:
    """Learning rate by step."""
    lr, warmup = config.lr, min(config.warmup, config.steps // 2)
    ramp = optax.linear_schedule(config.warmup_from * lr, lr, warmup)
    if config.schedule == "steps":
        falls = {step - warmup: 0.1 for step in config.milestones}
        after = optax.piecewise_constant_schedule(lr, falls)
    else:
        after = optax.cosine_decay_schedule(lr, config.steps - warmup, config.final_lr)
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(
    config: OptimConfig,
    frozen: Frozen,
    *,
    lr_factor: Factor | None = None,
    decay_factor: Factor | None = None,
) -> optax.GradientTransformation:
    """The optimizer of `config`; frozen parameters get no update at all.

    lr_factor, decay_factor: of the learning rate and the weight decay of a parameter (adam_l2
    alone; None: 1 for all).
    """
    schedule = make_schedule(config)
    if config.optimizer == "sgd":
        decay = optax.add_decayed_weights(config.weight_decay)
        tx = optax.chain(decay, optax.sgd(schedule, momentum=0.9))
    elif config.optimizer == "adamw":
        tx = optax.adamw(schedule, weight_decay=config.weight_decay)
    else:
        tx = adam_l2(schedule, config.weight_decay, lr_factor=lr_factor, decay_factor=decay_factor)
    if config.clip is not None:
        tx = optax.chain(optax.clip_by_global_norm(config.clip), tx)

    def label(params):
        return _by_name(lambda names, _: "frozen" if frozen(names) else "free", params)

    return optax.multi_transform({"free": tx, "frozen": optax.set_to_zero()}, label)


def adam_l2(
    schedule: optax.Schedule,
    weight_decay: float,
    *,
    lr_factor: Factor | None = None,
    decay_factor: Factor | None = None,
) -> optax.GradientTransformation:
    """Adam whose weight decay is part of the gradient (L2, as PyTorch's Adam has it; not AdamW)."""
    lr_factor, decay_factor = lr_factor or (lambda names: 1.0), decay_factor or (lambda names: 1.0)

    def decay(gradients, params):
        def leaf(names, gradient, param):
            factor = decay_factor(names)
            return gradient + weight_decay * factor * param if factor else gradient

        return _by_name(leaf, gradients, params)

    def scale(updates, params):
        return _by_name(lambda names, update: lr_factor(names) * update, updates)

    return optax.chain(
        optax.stateless(decay),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(schedule),
        optax.stateless(scale),
    )


def freeze(params: Params, frozen: Frozen) -> Params:
    """Frozen parameters as constants: no gradient is computed for them."""
    return _by_name(lambda names, x: jax.lax.stop_gradient(x) if frozen(names) else x, params)


def _by_name(function: Callable, *trees):
    """Maps (names from the root, leaf, ...) over the leaves."""

    def leaf(path, *leaves):
        return function([entry.key for entry in path], *leaves)

    return jax.tree_util.tree_map_with_path(leaf, *trees)
