"""The step of Faster R-CNN: any number of devices, SGD as PyTorch has it, few compilations."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import processes
import pytest
import torch
from small_faster_rcnn import small

from weaksam_jax.data.augment import AugmentConfig
from weaksam_jax.data.batches import make_batches
from weaksam_jax.data.pseudo_boxes import PseudoSamples
from weaksam_jax.detectors.faster_rcnn.config import DropConfig
from weaksam_jax.detectors.faster_rcnn.loss import RoiLosses, roi_objective
from weaksam_jax.engine.mesh import AXIS, data_mesh, put_batch
from weaksam_jax.engine.step import count_compilations, create_state, make_train_step
from weaksam_jax.engine.train import frozen_loss


def test_devices_and_micro_batches_take_the_gradient_of_the_whole_batch():
    """`devices_job.py` holds the step against the parts in one `vmap` on one device."""
    job = Path(processes.__file__).parent / "devices_job.py"
    (output,) = processes.run([job], devices=4)
    assert output.splitlines() == ["n_valid 4 1", "n_kept 4 1", "n_kept 2 2"]


def test_shares_are_of_all_rois_and_not_means_of_the_devices_shares():
    rng = np.random.default_rng(1)
    cls, reg = rng.exponential(3, (2, 4, 12)).astype(np.float32)
    foreground = rng.random((4, 12)) < [[0.8], [0.4], [0.1], [0.0]]
    valid = rng.random((4, 12)) < [[1.0], [0.2], [0.7], [0.5]]
    drop = DropConfig(tau_cls=3.0, tau_reg=3.0, start=0)
    args = cls, np.where(foreground, reg, 0), foreground, valid

    def one(*args):
        return roi_objective(RoiLosses(*args), step=jnp.asarray(0), drop=drop, axis_name=AXIS)

    terms, metrics = jax.vmap(one, axis_name=AXIS)(*args)
    kept = valid & (args[0] <= 3) & (args[1] <= 3)
    for name, kind in (("foreground", foreground), ("background", ~foreground)):
        share = (kind & valid & ~kept).sum() / (kind & valid).sum()
        np.testing.assert_allclose(metrics[f"dropped_{name}"], share, rtol=1e-6)
    for term, values in (("cls", args[0]), ("box", args[1])):
        total = (values * kept).sum() / valid.sum()
        assert float(terms[term].mean()) == pytest.approx(float(total), rel=1e-5)


def test_sgd_is_that_of_pytorch():
    """Momentum .9, decay 1e-4 of every weight and bias, linear warm-up from lr / 1000, steps."""
    optim = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-2, "warmup": 4, "steps": 16}
    detector = small(optim={**optim, "schedule": "steps", "milestones": (8, 12)})
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,)}
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    params = {"head": {name: jnp.asarray(value) for name, value in start.items()}}
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    sgd = torch.optim.SGD(theirs.values(), 0.1, momentum=0.9, weight_decay=1e-2)
    tx = detector.optimizer()
    opt = tx.init(params)
    for step in range(16):
        gradient = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        gradient = {name: value.astype(np.float32) for name, value in gradient.items()}
        updates, opt = tx.update({"head": gradient}, opt, params)
        params = optax.apply_updates(params, updates)
        # detectron2's WarmupMultiStepLR: factor 1/1000 (1 - a) + a, a = step / warmup.
        part = min(step / 4, 1)
        rate = 0.1 * ((1 - part) / 1000 + part) * 0.1 ** ((step >= 8) + (step >= 12))
        for group in sgd.param_groups:
            group["lr"] = rate
        for name, value in theirs.items():
            value.grad = torch.from_numpy(gradient[name])
        sgd.step()
    for name, value in theirs.items():
        np.testing.assert_allclose(params["head"][name], value.detach().numpy(), atol=1e-6)


def test_images_of_all_shapes_and_counts_are_one_compilation_per_padded_size(rectangles):
    """Landscape, portrait and square photographs with one or two boxes: two padded sizes, two
    programs."""
    split, pgt = rectangles
    kept = [one for one in pgt["annotations"] if one["id"] != 10]  # an image with a single box
    scales = (((64, 96), (96, 64)),)
    detector, augment = small(data={"scales": scales}), AugmentConfig(scale=(0.6, 1.0))
    samples = PseudoSamples(pgt | {"annotations": kept}, split, scales, augment)
    batches = make_batches(samples, samples.buckets, 2, 0, draw=samples.draw)
    mesh, tx = data_mesh(jax.devices()[:1]), detector.optimizer()
    params = detector.init(jax.random.key(0), samples.example())
    state = create_state(params, tx, jax.random.key(0), mesh)
    step, shapes, sizes = make_train_step(frozen_loss(detector), tx, mesh), set(), set()
    with count_compilations("step") as compiled:
        for _ in range(12):
            batch = next(batches)
            batch.pop("image_id")
            shapes.add(batch["image"].shape[1:3])
            sizes |= set(map(tuple, batch["size"].tolist()))
            state, _ = step(state, put_batch(batch, mesh))
    assert shapes == {(64, 96), (96, 64)} and len(sizes) > 6
    assert len(compiled) == 2
