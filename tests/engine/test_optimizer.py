"""Schedules and Adam with L2 against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from weaksam_jax.engine.optimizer import adam_l2, warmed_steps


def test_warmed_steps_is_the_published_schedule():
    rate, warmup, start, milestones = 1e-5, 200, 1 / 3, (2000, 2670)

    def published(step):
        value = rate * 0.1 ** sum(step >= one for one in milestones)
        share = min(step / warmup, 1)
        return value * (start * (1 - share) + share)

    schedule = warmed_steps(rate, warmup, start, milestones)
    for step in (0, 1, 100, 199, 200, 201, 1999, 2000, 2001, 2669, 2670, 2999):
        assert float(schedule(step)) == pytest.approx(published(step), rel=1e-5)


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
    rate, decay = 1e-2, 0.3
    theirs = torch.optim.Adam(
        [
            {"params": [own["fc/kernel"]], "weight_decay": decay},
            {"params": [own["fc/bias"]], "lr": 2 * rate, "weight_decay": 0.0},
        ],
        lr=rate,
        eps=1e-8,
    )
    is_bias = lambda name: name.endswith("bias")  # noqa: E731
    tx = adam_l2(
        lambda step: rate,
        decay,
        decayed=lambda name: 0.0 if is_bias(name) else 1.0,
        rates=lambda name: 0.0 if name.startswith("frozen") else 2.0 if is_bias(name) else 1.0,
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
