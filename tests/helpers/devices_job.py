"""The step of Faster R-CNN on four devices against one: `python devices_job.py`, with four devices.

Says the normalisers that agreed; an assertion ends it otherwise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from weaksam_jax.detectors.faster_rcnn.config import RetrainSettings
from weaksam_jax.detectors.faster_rcnn.loss import DetectionSettings, DropSettings, faster_rcnn_loss
from weaksam_jax.detectors.faster_rcnn.network import build_model, init_model, normalise
from weaksam_jax.detectors.faster_rcnn.train import make_step
from weaksam_jax.engine.mesh import AXIS, data_mesh, put_batch
from weaksam_jax.engine.step import create_state

CLASSES = 2


def random_batch(rng, images, canvas, objects=4):
    corner = rng.uniform(0, 30, (images, objects, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 30, corner.shape)], -1)
    return {
        "image": rng.integers(0, 255, (images, *canvas, 3), dtype=np.uint8),
        "size": rng.uniform(40, 64, (images, 2)).round().astype(np.float32),
        "boxes": boxes.astype(np.float32),
        "labels": rng.integers(0, CLASSES, (images, objects)).astype(np.int32),
        "valid": rng.random((images, objects)) < [[0.9], [0.3], [0.0], [0.6]][:images],
    }


def check(normaliser):
    """Against the parts in one `vmap` on one device: mean loss, its gradient, and the shares of
    dropped RoIs of all parts together."""
    drop = DropSettings(tau_cls=1.125, tau_reg=2.0, start=0, normaliser=normaliser)
    detection = DetectionSettings(rpn_batch=16, pre_nms=20, post_nms=10, roi_batch=16)
    settings = RetrainSettings(channels=8, fc_width=16, detection=detection, drop=drop, batch=4)
    model, tx, mesh = build_model(settings, CLASSES), optax.sgd(1.0), data_mesh(jax.devices()[:4])
    params = init_model(model, (64, 64), jax.random.key(0), None)
    # Fresh logits are all but equal, and a rounding error would change the order of proposals.
    params["rpn"]["objectness"]["kernel"] *= 1000
    params["box_head"]["cls"]["kernel"] *= -10  # so are fresh losses, and some are to be dropped
    batch = random_batch(np.random.default_rng(0), 4, (64, 64))
    key = jax.random.key(5)

    def part_loss(params, part, place):
        part = {name: value[None] for name, value in part.items()}
        image = normalise(part["image"], part["size"], settings.backbone)
        rng = jax.random.fold_in(jax.random.fold_in(key, 0), place)
        options = settings.detection, drop, AXIS
        return faster_rcnn_loss(model, params, part | {"image": image}, 0, rng, *options)

    def whole(params):
        over_parts = jax.vmap(part_loss, in_axes=(None, 0, 0), axis_name=AXIS)
        losses, metrics = over_parts(params, batch, jnp.arange(4))
        return losses.mean(), metrics

    (loss, parts), gradient = jax.jit(jax.value_and_grad(whole, has_aux=True))(params)
    step = make_step(model, settings, tx, mesh)
    state, metrics = step(create_state(params, tx, key, mesh), put_batch(batch, mesh))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, state.params)
    for want, got in zip(jax.tree.leaves(gradient), jax.tree.leaves(moved), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-5)
    for name in ("dropped_foreground", "dropped_background", "foreground_rois"):
        np.testing.assert_allclose(metrics[name], np.asarray(parts[name]), rtol=1e-6)
    for kind in ("foreground", "background"):
        assert 0 < float(metrics[f"dropped_{kind}"]) < 1


if __name__ == "__main__":
    assert len(jax.devices()) == 4
    for one in ("n_valid", "n_kept"):
        check(one)
        print(one)
