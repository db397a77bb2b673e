"""Schedules, frozen parameters, and Adam with L2 against PyTorch's."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from weaksam_jax.engine.optimizer import (
    OptimConfig,
    adam_l2,
    freeze,
    make_optimizer,
    make_schedule,
)


def test_the_schedule_of_steps_is_the_published_one():
    lr, warmup, start, milestones = 1e-5, 200, 1 / 3, (2000, 2670)

    def published(step):
        value = lr * 0.1 ** sum(step >= one for one in milestones)
        share = min(step / warmup, 1)
        return value * (start * (1 - share) + share)

    config = OptimConfig(
        lr=lr,
        warmup=warmup,
        warmup_from=start,
        schedule="steps",
        milestones=milestones,
        steps=3000,
    )
    schedule = make_schedule(config)
    for step in (0, 1, 100, 199, 200, 201, 1999, 2000, 2001, 2669, 2670, 2999):
        assert float(schedule(step)) == pytest.approx(published(step), rel=1e-5)


def test_cosine_ends_at_its_part_and_a_short_trial_warms_up_for_half_its_steps():
    config = OptimConfig(lr=0.2, warmup=10, warmup_from=0.1, final_lr=0.02, steps=50)
    schedule = make_schedule(config)
    for step in range(0, 51, 5):
        if step < 10:
            want = 0.2 * (0.1 + 0.9 * step / 10)
        else:
            want = 0.2 * (0.02 + 0.98 * (1 + np.cos(np.pi * (step - 10) / 40)) / 2)
        assert float(schedule(step)) == pytest.approx(want, rel=1e-5)
    short = make_schedule(replace(config, steps=8))
    assert float(short(4)) == pytest.approx(0.2)
    assert 0.2 > float(short(3)) > float(short(0)) == pytest.approx(0.02)
    assert float(short(8)) == pytest.approx(0.02 * 0.2)


def is_frozen(names):
    return names[0] == "backbone" and names[1] != "late"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adam_l2"])
def test_frozen_parameters_get_no_gradient_and_no_update(optimizer):
    """Not even by the decay of weights, which needs no gradient."""
    layers = {
        "backbone": {"early": {"kernel": 1.0}, "late": {"kernel": 2.0}},
        "head": {"bias": 3.0},
    }
    params = jax.tree.map(lambda value: jnp.full((3,), value), layers)
    config = OptimConfig(optimizer=optimizer, lr=0.1, weight_decay=0.5, warmup=0, clip=1.0)
    tx = make_optimizer(config, is_frozen)

    def loss(params):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(freeze(params, is_frozen)))

    state = tx.init(params)
    for _ in range(3):
        grads = jax.grad(loss)(params)
        assert not grads["backbone"]["early"]["kernel"].any()
        assert grads["backbone"]["late"]["kernel"].all() and grads["head"]["bias"].all()
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert (params["backbone"]["early"]["kernel"] == 1.0).all()
    assert (params["backbone"]["late"]["kernel"] < 2.0).all() and (params["head"]["bias"] < 3).all()


def test_adam_l2_is_torchs_adam_with_groups():
    """Kernels decay, biases do not and learn twice as fast, frozen ones stay as they are."""
    rng = np.random.default_rng(0)
    shapes = {"frozen": {"kernel": (3, 2)}, "fc": {"kernel": (3, 4), "bias": (4,)}}
    params = jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    own = {
        f"{layer}/{name}": torch.nn.Parameter(torch.tensor(np.asarray(value)))
        for layer, leaves in params.items()
        for name, value in leaves.items()
    }
    lr, decay = 1e-2, 0.3
    theirs = torch.optim.Adam(
        [
            {"params": [own["fc/kernel"]], "weight_decay": decay},
            {"params": [own["fc/bias"]], "lr": 2 * lr, "weight_decay": 0.0},
        ],
        lr=lr,
        eps=1e-8,
    )
    is_bias = lambda names: names[-1] == "bias"  # noqa: E731
    tx = adam_l2(
        lambda step: lr,
        decay,
        lr_factor=lambda names: 0.0 if names[0] == "frozen" else 2.0 if is_bias(names) else 1.0,
        decay_factor=lambda names: 0.0 if is_bias(names) else 1.0,
    )
    state, before = tx.init(params), np.asarray(params["frozen"]["kernel"])
    for _ in range(5):
        grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
        for layer, leaves in grads.items():
            for name, value in leaves.items():
                own[f"{layer}/{name}"].grad = torch.tensor(np.asarray(value))
        theirs.step()
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    for name in ("kernel", "bias"):
        expected = own[f"fc/{name}"].detach().numpy()
        np.testing.assert_allclose(params["fc"][name], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(params["frozen"]["kernel"], before)
