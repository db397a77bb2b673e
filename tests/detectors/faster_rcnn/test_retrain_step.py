"""The step of Faster R-CNN: any number of devices, SGD as PyTorch has it, few compilations."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from test_retrain import small, split  # noqa: F401  (a fixture)

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import processes

from weaksam_jax.data.batches import make_batches
from weaksam_jax.data.pseudo_boxes import Augmentation, PseudoSamples
from weaksam_jax.detectors.faster_rcnn.loss import DropSettings, roi_objective
from weaksam_jax.detectors.faster_rcnn.network import build_model, init_model
from weaksam_jax.detectors.faster_rcnn.train import make_optimizer, make_step
from weaksam_jax.engine.mesh import AXIS, data_mesh, put_batch
from weaksam_jax.engine.step import count_compilations, create_state

pytestmark = pytest.mark.usefixtures("compile_once")


def test_four_devices_take_the_gradient_of_the_whole_batch(tmp_path, monkeypatch):
    """`devices_job.py` holds the step against the parts in one `vmap` on one device."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiles in half the time
    job = Path(__file__).parent / "devices_job.py"
    (output,) = processes.run([job], devices=4, cache=tmp_path)
    assert output.split() == ["n_valid", "n_kept"]


def test_shares_are_of_all_rois_and_not_means_of_the_devices_shares():
    rng = np.random.default_rng(1)
    cls, reg = rng.exponential(3, (2, 4, 12)).astype(np.float32)
    foreground = rng.random((4, 12)) < [[0.8], [0.4], [0.1], [0.0]]
    valid = rng.random((4, 12)) < [[1.0], [0.2], [0.7], [0.5]]
    drop = DropSettings(tau_cls=3.0, tau_reg=3.0, start=0)
    args = cls, np.where(foreground, reg, 0), foreground, valid

    def one(*args):
        return roi_objective(*args, jnp.asarray(0), drop, AXIS)

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
    settings = small(
        optimizer="sgd", learning_rate=0.1, weight_decay=1e-2, warmup=4, milestones=(8, 12),
        steps=16, frozen=(),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,)}
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    params = {"head": {name: jnp.asarray(value) for name, value in start.items()}}
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    sgd = torch.optim.SGD(theirs.values(), 0.1, momentum=0.9, weight_decay=1e-2)
    tx = make_optimizer(settings, params)
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


def test_images_of_all_shapes_and_counts_are_a_compilation_a_canvas(split):  # noqa: F811
    """Landscape, portrait and square photographs with one or two boxes: two canvases, two
    programs."""
    tags, pgt = split
    kept = [one for one in pgt["annotations"] if one["id"] != 10]  # an image with a single box
    scales = (((64, 96), (96, 64)),)
    settings = small(scales=scales, augmentation=Augmentation(scale=(0.6, 1.0)))
    samples = PseudoSamples(pgt | {"annotations": kept}, tags, scales, settings.augmentation)
    batches = make_batches(samples, samples.groups, 2, 0, draw=samples.draw)
    model, mesh = build_model(settings, 2), data_mesh(jax.devices()[:1])
    params = init_model(model, scales[0][0], jax.random.key(0), None)
    tx = make_optimizer(settings, params)
    state = create_state(params, tx, jax.random.key(0), mesh)
    step, canvases, sizes = make_step(model, settings, tx, mesh), set(), set()
    with count_compilations("step") as compiled:
        for _ in range(12):
            batch = next(batches)
            batch.pop("image_id")
            canvases.add(batch["image"].shape[1:3])
            sizes |= set(map(tuple, batch["size"].tolist()))
            state, _ = step(state, put_batch(batch, mesh))
    assert canvases == {(64, 96), (96, 64)} and len(sizes) > 6
    assert len(compiled) == 2
