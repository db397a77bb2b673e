"""The train step on one and on four simulated devices, against the gradient written out."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from weaksam_jax.engine.mesh import data_mesh, put_batch
from weaksam_jax.engine.step import count_compilations, create_state, make_train_step
from weaksam_jax.errors import BadInput

PARAMS = {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2), "b": np.zeros(2, np.float32)}


def loss_fn(params, batch, keys, step):
    error = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return jnp.mean(error**2), {"largest": jnp.abs(error).max()}


def batch_of(seed, images=8):
    rng = np.random.default_rng(seed)
    draw = rng.standard_normal
    return {"x": draw((images, 3), np.float32), "y": draw((images, 2), np.float32)}


def noisy_loss(params, batch, keys, step):
    """As with dropout: the part's key decides."""
    noise = jax.random.normal(keys.part, batch["y"].shape)
    return loss_fn(params, {**batch, "y": batch["y"] + noise}, keys, step)


def own_noise_loss(params, batch, keys, step):
    """Every image has noise of its own."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys.images)
    return loss_fn(params, {**batch, "y": batch["y"] + noise}, keys, step)


def three_steps(mesh, micro_batches=1, loss_fn=loss_fn):
    tx = optax.sgd(0.1, momentum=0.9)
    state = create_state(PARAMS, tx, jax.random.key(0), mesh)
    step, losses = make_train_step(loss_fn, tx, mesh, micro_batches), []
    for seed in range(3):
        state, metrics = step(state, put_batch(batch_of(seed), mesh))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


def three_steps_by_hand():
    w, b = PARAMS["w"].astype(np.float64), PARAMS["b"].astype(np.float64)
    vw, vb, losses = np.zeros_like(w), np.zeros_like(b), []
    for seed in range(3):
        batch = batch_of(seed)
        error = batch["x"] @ w + b - batch["y"]
        losses.append((error**2).mean())
        gw, gb = 2 * batch["x"].T @ error / error.size, 2 * error.sum(0) / error.size
        vw, vb = 0.9 * vw + gw, 0.9 * vb + gb
        w, b = w - 0.1 * vw, b - 0.1 * vb
    return losses, {"w": w, "b": b}


def test_one_device_is_the_gradient_written_out():
    (losses, params), (want, by_hand) = three_steps(data_mesh()), three_steps_by_hand()
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    for name in params:
        np.testing.assert_allclose(params[name], by_hand[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_micro_batches_are_the_gradient_written_out(micro_batches):
    losses, params = three_steps(data_mesh(), micro_batches)
    want, by_hand = three_steps_by_hand()
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    for name in params:
        np.testing.assert_allclose(params[name], by_hand[name], rtol=1e-4, atol=1e-6)


def test_metrics_are_means_over_the_micro_batches():
    mesh, tx = data_mesh(), optax.sgd(0.1)
    state = create_state(PARAMS, tx, jax.random.key(0), mesh)
    _, metrics = make_train_step(loss_fn, tx, mesh, 4)(state, put_batch(batch_of(0), mesh))
    whole = batch_of(0)
    quarters = [{k: v[i : i + 2] for k, v in whole.items()} for i in range(0, 8, 2)]
    largest = [float(loss_fn(PARAMS, part, None, 0)[1]["largest"]) for part in quarters]
    np.testing.assert_allclose(metrics["largest"], np.mean(largest), rtol=1e-6)


def test_what_does_not_divide_says_what_does():
    mesh, tx = data_mesh(), optax.sgd(0.1)
    state = create_state(PARAMS, tx, jax.random.key(0), mesh)
    with pytest.raises(BadInput, match=r"8 images .* 3 micro-batches each; choose a multiple of 3"):
        make_train_step(loss_fn, tx, mesh, 3)(state, put_batch(batch_of(0), mesh))


def test_four_devices_are_one_device():
    """In a process of its own: the number of devices is fixed when JAX starts.

    With `check_vma=True` the gradient, and so the parameters, would be four times off. With noise
    of the part's key, 4 devices are 1 device with 4 micro-batches, and 2 devices with 2; with noise
    of the images' own, all of them are 1 device that takes the batch as a whole.
    """
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import jax; import test_step as t;"
        "from weaksam_jax.engine.mesh import data_mesh; assert len(jax.devices()) == 4;"
        "two = data_mesh(jax.devices()[:2]);"
        "runs = t.three_steps(data_mesh()), t.three_steps(data_mesh(), 1, t.noisy_loss);"
        "runs += (t.three_steps(two, 2, t.noisy_loss),);"
        "runs += (t.three_steps(data_mesh(), 1, t.own_noise_loss),);"
        "runs += (t.three_steps(two, 2, t.own_noise_loss),);"
        "print(json.dumps([[l, p['w'].tolist(), p['b'].tolist()] for l, p in runs]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    plain, noisy, *_ = runs = json.loads(run.stdout)
    whole, cut = three_steps(data_mesh()), three_steps(data_mesh(), 4, noisy_loss)
    own = three_steps(data_mesh(), loss_fn=own_noise_loss)
    wanted = whole, cut, cut, own, own
    for (losses, w, b), (want, params) in zip(runs, wanted, strict=True):
        np.testing.assert_allclose(losses, want, rtol=1e-5)
        np.testing.assert_allclose(w, params["w"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(b, params["b"], rtol=1e-5, atol=1e-6)
    assert abs(noisy[0][0] - plain[0][0]) > 0.1 and abs(own[0][0] - plain[0][0]) > 0.1


def test_one_compilation_per_shape():
    mesh, tx = data_mesh(), optax.sgd(0.1)
    step = make_train_step(loss_fn, tx, mesh)
    state = create_state(PARAMS, tx, jax.random.key(0), mesh)
    with count_compilations("step") as lines:
        for images in (8, 4, 8, 4, 8):
            state, _ = step(state, put_batch(batch_of(0, images), mesh))
    assert len(lines) == 2


def test_the_state_is_donated_and_the_arguments_are_not():
    mesh, tx = data_mesh(), optax.sgd(0.1)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = create_state(params, tx, jax.random.key(0), mesh)
    make_train_step(loss_fn, tx, mesh)(state, put_batch(batch_of(0), mesh))
    assert state.params["w"].is_deleted() and not params["w"].is_deleted()


def test_the_keys_differ_by_step_and_the_loss_is_told_it():
    mesh, tx = data_mesh(), optax.sgd(0.0)

    def noise(params, batch, keys, step):
        own = jax.vmap(jax.random.uniform)(keys.images)
        draws = {"draw": jax.random.uniform(keys.part), "first": own[0], "last": own[-1]}
        return jnp.sum(params["w"]) * 0, {**draws, "step": step * 1.0}

    step, draws, steps = make_train_step(noise, tx, mesh), [], []
    state = create_state(PARAMS, tx, jax.random.key(0), mesh)
    for _ in range(3):
        state, metrics = step(state, put_batch(batch_of(0), mesh))
        draws += [float(metrics[name]) for name in ("draw", "first", "last")]
        steps.append(float(metrics["step"]))
    assert len(set(draws)) == 9 and steps == [0, 1, 2]
