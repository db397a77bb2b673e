"""ResNet-50 against torchvision's blocks with the same weights, values and gradients."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_torchvision import SmallResNet, numpy_state, randomise

from bridge.weights.r50_fpn import to_ours
from bridge.weights.resnet50 import RESNET_TORCHVISION
from weaksam_jax.backbones.resnet import STRIDES, ResNet50, is_constant, resnet_input
from weaksam_jax.detectors.faster_rcnn import recipes
from weaksam_jax.detectors.faster_rcnn.model import FasterRCNN
from weaksam_jax.detectors.faster_rcnn.network import build_model, normalise
from weaksam_jax.detectors.faster_rcnn.train import make_optimizer

WIDTH = 4


def both(**options):
    """The PyTorch network and ours with its weights."""
    network = randomise(SmallResNet(WIDTH, **options))
    arrays = to_ours(numpy_state(network), RESNET_TORCHVISION, "test")
    model = ResNet50(WIDTH, frozen_stages=0, **options)
    return network, model, flax.traverse_util.unflatten_dict(arrays, sep="/")


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
            maps = model.apply({"params": params}, images)
            return sum(jnp.sum(m * w) for m, w in zip(maps, weights, strict=True)), maps

        return jax.grad(total, has_aux=True)(params)

    gradient, maps = run(params)
    strides = (4, 8, 16, 16) if dilate_last else STRIDES
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
    gradient = flax.traverse_util.flatten_dict(gradient, sep="/")
    for name, value in gradient.items():
        if "norm" in name:
            assert not np.asarray(value).any()  # constants
        else:
            np.testing.assert_allclose(value, wanted[name], atol=1e-4 * np.abs(wanted[name]).max())


@pytest.mark.parametrize("frozen", [0, 2, 5])
def test_frozen_stages_and_norms_get_no_gradient(frozen):
    _, _, params = both()
    model = ResNet50(WIDTH, frozen_stages=frozen)

    def total(params):
        return sum(jnp.sum(x**2) for x in model.apply({"params": params}, random_images(32, 32)))

    gradient = flax.traverse_util.flatten_dict(jax.jit(jax.grad(total))(params))
    still = {path for path, value in gradient.items() if not np.asarray(value).any()}
    assert still == {path for path in gradient if is_constant(path, frozen)}
    assert len(still) == {0: 2 * 53, 2: 2 * 53 + 11, 5: 3 * 53}[frozen]


def test_frozen_stages_change_no_value():
    _, model, params = both()
    images = random_images(32, 64)
    frozen = ResNet50(WIDTH).apply({"params": params}, images)
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


def test_pixels_of_both_families():
    image = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    rgb = image.astype(np.float64)
    bgr = rgb[..., ::-1] - [103.53, 116.28, 123.675]
    np.testing.assert_allclose(resnet_input(image, "msra"), bgr, atol=1e-4)
    expected = (rgb / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(resnet_input(image, "torchvision"), expected, atol=1e-5)


def paper_settings(**changes):
    return dataclasses.replace(recipes.voc07(), **changes)


@pytest.mark.parametrize(("classes", "millions"), [(20, 41.45), (80, 41.75)])
def test_retraining_builds_the_published_detector(classes, millions):
    model = build_model(paper_settings(), classes)
    assert model == FasterRCNN(ResNet50(stride_in_1x1=True, frozen_stages=0), classes)
    inputs = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 1, 4))
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == pytest.approx(millions * 1e6, abs=1e4)
    half = build_model(paper_settings(dtype="bfloat16"), classes)
    assert half.dtype == half.backbone.dtype == jnp.bfloat16


def test_pixels_of_the_padding_are_zero():
    images = np.random.default_rng(0).integers(0, 256, (1, 6, 8, 3), dtype=np.uint8)
    for name, family in (("resnet50", "torchvision"), ("resnet50_msra", "msra")):
        expected = np.array(resnet_input(images, family))
        expected[:, 4:], expected[:, :, 5:] = 0, 0
        np.testing.assert_array_equal(normalise(images, np.float32([[4, 5]]), name), expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizers_pass_over_frozen_norms_and_stages(optimizer):
    """Weight decay would shrink the norms of a ResNet, which have no gradient, to nothing."""
    network = ResNet50(1)
    backbone = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    params = jax.tree.map(
        lambda x: jnp.ones(x.shape), {"backbone": backbone, "rpn": {"norm": jnp.ones(1)}}
    )
    settings = paper_settings(optimizer=optimizer, learning_rate=0.1, warmup=0)
    tx = make_optimizer(settings, params)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    moved = {
        path: bool(np.asarray(value).all())
        for path, value in flax.traverse_util.flatten_dict(updates).items()
    }
    expected = {path: path[0] != "backbone" or not is_constant(path[1:], 2) for path in moved}
    assert moved == expected and 0 < sum(moved.values()) < len(moved)
