"""The step of Faster R-CNN on several devices against one: `python devices_job.py`, four devices.

Says the cases that agreed; an assertion ends it otherwise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from small_faster_rcnn import small

from weaksam_jax.detectors.faster_rcnn.config import DropConfig
from weaksam_jax.engine.mesh import AXIS, data_mesh, put_batch
from weaksam_jax.engine.step import Keys, create_state, keys_of, make_train_step
from weaksam_jax.engine.train import frozen_loss

# Normaliser, devices, micro-batches of each.
CASES = (("n_valid", 4, 1), ("n_kept", 4, 1), ("n_kept", 2, 2))
SHARES = ("dropped_foreground", "dropped_background", "foreground_rois")


def random_batch(rng, images, padded, objects=4, classes=2):
    corner = rng.uniform(0, 30, (images, objects, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 30, corner.shape)], -1)
    return {
        "image": rng.integers(0, 255, (images, *padded, 3), dtype=np.uint8),
        "size": rng.uniform(40, 64, (images, 2)).round().astype(np.float32),
        "boxes": boxes.astype(np.float32),
        "labels": rng.integers(0, classes, (images, objects)).astype(np.int32),
        "valid": rng.random((images, objects)) < [[0.9], [0.3], [0.0], [0.6]][:images],
    }


def start(detector, batch):
    """Fresh parameters under which some RoIs are dropped, and not all."""
    params = detector.init(jax.random.key(0), batch)
    # Fresh logits are all but equal, and a rounding error would change the order of proposals.
    params["rpn"]["objectness"]["kernel"] *= 1000
    params["box_head"]["cls"]["kernel"] *= -10  # so are fresh losses, and some are to be dropped
    return params


def on_one_device(detector, batch, key, devices, parts):
    """(mean loss, mean metrics) by parameters: the devices and their micro-batches as `vmap`s."""
    rng = jax.random.fold_in(jax.random.fold_in(key, 0), 0)  # of the first step, of its first part
    images = keys_of(rng, devices * parts).images
    rows = jax.tree.map(lambda x: x.reshape(devices, parts, 1, *x.shape[1:]), (batch, images))

    def loss(params, part):
        batch, images = part
        return detector.loss(params, batch, Keys(rng, images), jnp.int32(0))

    over_devices = jax.vmap(loss, in_axes=(None, 0), axis_name=AXIS)
    over_parts = jax.vmap(over_devices, in_axes=(None, 1))

    def whole(params):
        losses, metrics = over_parts(params, rows)
        return losses.mean(), jax.tree.map(jnp.mean, metrics)

    return whole


def check(normaliser, devices, parts):
    """Mean loss, its gradient, and the shares of dropped RoIs of all devices together."""
    drop = DropConfig(tau_cls=1.125, tau_reg=2.0, start=0, normaliser=normaliser)
    detector = small(loss={"drop": drop})
    batch, key = random_batch(np.random.default_rng(0), 4, (64, 64)), jax.random.key(5)
    params = start(detector, batch)
    whole = on_one_device(detector, batch, key, devices, parts)
    (loss, means), gradient = jax.jit(jax.value_and_grad(whole, has_aux=True))(params)
    tx, mesh = optax.sgd(1.0), data_mesh(jax.devices()[:devices])
    step = make_train_step(frozen_loss(detector), tx, mesh, parts)
    state, metrics = step(create_state(params, tx, key, mesh), put_batch(batch, mesh))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, state.params)
    for want, got in zip(jax.tree.leaves(gradient), jax.tree.leaves(moved), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-5)
    for name in SHARES:
        np.testing.assert_allclose(metrics[name], means[name], rtol=1e-6)
    for kind in ("foreground", "background"):
        assert 0 < float(metrics[f"dropped_{kind}"]) < 1


if __name__ == "__main__":
    assert len(jax.devices()) == 4
    for case in CASES:
        check(*case)
        print(*case)
