"""ResNet-50 against torchvision's blocks with the same weights, values and gradients."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_torchvision import SmallResNet, numpy_state, randomise

from bridge.weights.r50_fpn import to_ours
from bridge.weights.resnet50 import RESNET_TORCHVISION
from weaksam_jax.backbones import BACKBONES, is_frozen
from weaksam_jax.backbones.resnet import ResNet50
from weaksam_jax.detectors.faster_rcnn import FasterRcnn, recipes
from weaksam_jax.detectors.faster_rcnn.detector import build_network
from weaksam_jax.detectors.faster_rcnn.model import FasterRcnnNetwork
from weaksam_jax.engine.optimizer import freeze
from weaksam_jax.engine.weights import flatten, unflatten

WIDTH = 4
STAGES = ("stem", "res2", "res3", "res4", "res5")


def both(**options):
    """The PyTorch network and ours with its weights."""
    network = randomise(SmallResNet(WIDTH, **options))
    arrays = to_ours(numpy_state(network), RESNET_TORCHVISION, "test")
    return network, ResNet50(WIDTH, **options), unflatten(arrays)


def held(params, frozen=()):
    """Parameters of the backbone as a detector's training holds them."""
    return freeze({"backbone": params}, lambda path: is_frozen(path, "resnet50", frozen))[
        "backbone"
    ]


def random_images(height, width):
    return np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("stride_in_1x1", "dilate_last", "size"),
    [(False, False, (75, 93)), (True, False, (64, 96)), (True, True, (70, 64))],
)
def test_maps_and_gradients_equal_torchvision(stride_in_1x1, dilate_last, size):
    network, model, params = both(stride_in_1x1=stride_in_1x1, dilate_last=dilate_last)
    images = random_images(*size)
    expected = network(torch.tensor(images).permute(0, 3, 1, 2))
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=x.permute(0, 2, 3, 1).shape).astype(np.float32) for x in expected]

    @jax.jit
    def run(params):
        def total(params):
            maps = model.apply({"params": held(params)}, images)
            return sum(jnp.sum(m * w) for m, w in zip(maps, weights, strict=True)), maps

        return jax.grad(total, has_aux=True)(params)

    gradient, maps = run(params)
    strides = (4, 8, 16, 16) if dilate_last else BACKBONES["resnet50"].strides
    for ours, theirs, stride in zip(maps, expected, strides, strict=True):
        assert ours.shape[1:3] == tuple(-(-side // stride) for side in size)
        theirs = theirs.detach().permute(0, 2, 3, 1)
        assert 0.1 < theirs.std() < 100
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))
    sum(
        (x.permute(0, 2, 3, 1) * torch.tensor(w)).sum()
        for x, w in zip(expected, weights, strict=True)
    ).backward()
    wanted = to_ours(numpy_state(network, gradients=True), RESNET_TORCHVISION, "test")
    for name, value in flatten(gradient).items():
        if "norm" in name:
            assert not np.asarray(value).any()  # constants
        else:
            np.testing.assert_allclose(value, wanted[name], atol=1e-4 * np.abs(wanted[name]).max())


@pytest.mark.parametrize(
    ("frozen", "count"), [((), 0), (STAGES[:2], 11), (STAGES, 53), (("*",), 53)]
)
def test_frozen_stages_and_norms_get_no_gradient(frozen, count):
    _, model, params = both()

    def total(params):
        maps = model.apply({"params": held(params, frozen)}, random_images(32, 32))
        return sum(jnp.sum(x**2) for x in maps)

    gradient = flatten(jax.jit(jax.grad(total))(params))
    still = {name for name, value in gradient.items() if not np.asarray(value).any()}
    named = {
        name for name in gradient if is_frozen(["backbone", *name.split("/")], "resnet50", frozen)
    }
    assert still == named and len(still) == 2 * 53 + count
    assert not any(is_frozen(["rpn", *name.split("/")], "resnet50", frozen) for name in gradient)


def test_freezing_changes_no_value():
    _, model, params = both()
    images = random_images(32, 64)
    frozen = model.apply({"params": held(params, ("*",))}, images)
    for a, b in zip(frozen, model.apply({"params": params}, images), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bfloat16_is_close_and_keeps_float32_parameters():
    _, model, params = both()
    images = random_images(64, 64)
    half = ResNet50(WIDTH, dtype=jnp.bfloat16)
    fresh = jax.eval_shape(half.init, jax.random.key(0), images)["params"]
    assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    exact = jax.jit(model.apply)({"params": params}, images)
    for a, b in zip(exact, jax.jit(half.apply)({"params": params}, images), strict=True):
        assert b.dtype == jnp.bfloat16
        error = np.abs(np.asarray(a) - np.asarray(b, np.float32))
        assert 0 < error.mean() < 0.02 * np.std(np.asarray(a))


@pytest.mark.parametrize(("classes", "millions"), [(20, 41.45), (80, 41.75)])
def test_retraining_builds_the_published_detector(classes, millions):
    config = recipes.voc07()
    network = build_network(config, classes)
    assert network == FasterRcnnNetwork(ResNet50(stride_in_1x1=True), classes)
    params = FasterRcnn(config, classes).shapes()
    assert sum(x.size for x in jax.tree.leaves(params)) == pytest.approx(millions * 1e6, abs=1e4)
    model = replace(config.model, precision="bfloat16")
    half = build_network(replace(config, model=model), classes)
    assert half.dtype == half.backbone.dtype == jnp.bfloat16


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizers_pass_over_frozen_norms_and_stages(optimizer):
    """Weight decay would shrink the norms of a ResNet, which have no gradient, to nothing."""
    config = recipes.voc07()
    optim = replace(config.optim, optimizer=optimizer, lr=0.1, warmup=0)
    detector = FasterRcnn(replace(config, optim=optim), 2)
    image = jnp.zeros((1, 32, 32, 3))
    backbone = jax.eval_shape(ResNet50(1).init, jax.random.key(0), image)["params"]
    params = {"backbone": backbone, "rpn": {"norm": jnp.ones(1)}}
    params = jax.tree.map(lambda x: jnp.ones(x.shape), params)
    tx = detector.optimizer()
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    moved = {name: bool(np.asarray(value).all()) for name, value in flatten(updates).items()}
    assert moved == {name: not detector.frozen(name.split("/")) for name in moved}
    assert moved["rpn/norm"] and moved["backbone/res3/block0/conv1/conv/kernel"]
    assert not any(moved[name] for name in moved if name.startswith("backbone/res2"))
    assert not any(moved[name] for name in moved if "backbone" in name and "/norm/" in name)
