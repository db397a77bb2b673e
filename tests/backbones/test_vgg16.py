"""VGG16: its features against plain PyTorch, pixel styles by hand, frozen blocks, bfloat16."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bridge.weights.vgg16 import vgg16_arrays
from experiments.bench import torch_mil as plain_mil
from weaksam_jax.backbones.vgg16 import Vgg16, vgg_input
from weaksam_jax.detectors.mil.config import WsodSettings
from weaksam_jax.detectors.mil.network import build_model, is_frozen, network_input

SMALL = (4, 6, 8, 10, 12)


def small_vgg(tmp_path, layout="caffe"):
    """(published tensors, parameters of Vgg16) of the same random weights."""
    state = plain_mil.random_state(layout, SMALL, 5, 1, side=2)
    torch.save(state, tmp_path / "vgg.pth")
    arrays = vgg16_arrays(tmp_path / "vgg.pth")[0]
    return state, flax.traverse_util.unflatten_dict(arrays, sep="/")["backbone"]


def images(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, 48, 64, 3)).astype(np.float32)


@pytest.mark.parametrize("rectify_last", [False, True])
def test_features_equal_plain_pytorch(tmp_path, rectify_last):
    state, params = small_vgg(tmp_path)
    x = images()
    model = Vgg16(SMALL, rectify_last)
    found = jax.jit(model.apply)({"params": params}, x)
    nchw = torch.from_numpy(x).permute(0, 3, 1, 2)
    expected = plain_mil.vgg_features(state, "features.", nchw, True, rectify_last)
    expected = expected.permute(0, 2, 3, 1).numpy()
    assert found.shape == (2, 6, 8, 12) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert (expected.min() < -0.1) != rectify_last  # the last ReLU makes a difference


def test_bfloat16_is_near_and_keeps_float32_outside(tmp_path):
    _, params = small_vgg(tmp_path)
    x = images()
    exact, half = (
        jax.jit(Vgg16(SMALL, dtype=dtype).apply)({"params": params}, x)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    fresh = jax.eval_shape(Vgg16(SMALL, dtype=jnp.bfloat16).init, jax.random.key(0), x)
    assert half.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    error = np.abs(half - exact)
    assert 0 < error.max() < 0.05 * np.abs(exact).max()  # 8 bits, thirteen layers
    assert error.mean() < 0.01 * np.abs(exact).max()


@pytest.mark.parametrize("frozen", [0, 2, 5])
def test_frozen_blocks_have_no_gradient_and_cost_none(tmp_path, frozen):
    _, params = small_vgg(tmp_path)
    model = Vgg16(SMALL, frozen_blocks=frozen)
    x = images()
    gradient = jax.jit(jax.grad(lambda p: (model.apply({"params": p}, x) ** 2).sum()))
    for name, leaf in gradient(params).items():
        assert bool(leaf["kernel"].any()) == (int(name[4]) > frozen), name
        assert bool(leaf["bias"].any()) == (int(name[4]) > frozen), name
    # Forward 13 (none when there is nothing to train); behind each trained layer one for
    # its kernel and one for its input, but for the input of the first.
    trained = {0: 13, 2: 9, 5: 0}[frozen]
    found = gradient.lower(params).as_text().count("stablehlo.convolution")
    assert found == (13 + 2 * trained - 1 if trained else 0)


def test_frozen_parameters_have_the_names_that_the_optimizer_asks_for(tmp_path):
    settings = WsodSettings(backbone="vgg16", frozen_blocks=2)
    names = [f"backbone/{name}/kernel" for name in small_vgg(tmp_path)[1]]
    frozen = [name for name in names if is_frozen(settings, name)]
    assert sorted(frozen) == [f"backbone/conv{b}_{k}/kernel" for b in (1, 2) for k in (1, 2)]
    assert not is_frozen(dataclasses.replace(settings, frozen_blocks=0), names[0])
    assert not is_frozen(dataclasses.replace(settings, backbone="mini_cnn"), names[0])


def test_pixel_styles_by_hand():
    red, green, blue = 200.0, 100.0, 50.0
    pixel = np.array([[[200, 100, 50]]], np.uint8)
    want = {
        "mist": [blue - 102.9801, green - 115.9465, red - 122.7717],
        "oicr": [blue - 104, green - 117, red - 124],
        "torchvision": [
            (red / 255 - 0.485) / 0.229,
            (green / 255 - 0.456) / 0.224,
            (blue / 255 - 0.406) / 0.225,
        ],
    }
    for style, expected in want.items():
        found = vgg_input(pixel, style)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5)


def test_the_padding_is_zero_after_the_mean_is_taken_off():
    settings = WsodSettings(backbone="vgg16", pixels="oicr")
    batch = {"image": np.full((1, 16, 24, 3), 7, np.uint8), "size": np.array([[9.0, 20.0]])}
    x, inside = network_input(settings, batch)
    assert (np.asarray(x)[0, :9, :20] == [7 - 104, 7 - 117, 7 - 124]).all()
    assert not x[0, 9:].any() and not x[0, :, 20:].any()
    # A cell of the map counts as inside when it starts before the image's end.
    assert inside.shape == (1, 2, 3) and np.asarray(inside).all()


def test_parameters_of_the_published_network():
    """Numbers of the notes (20-wsod.md, §7): MIST on VOC."""
    settings = WsodSettings(
        backbone="vgg16", width=4096, pooling="max", pool_size=7, evidence=0.0,
        pretrain_steps=0, tag_weight=0.0,
    )  # fmt: skip
    model = build_model(settings, 20)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    inside, boxes, prior = np.ones((1, 8, 8), bool), np.zeros((1, 3, 4)), np.zeros((1, 3, 20))
    params = jax.eval_shape(model.init, jax.random.key(0), image, inside, boxes, prior)["params"]
    sizes = {k: sum(x.size for x in jax.tree.leaves(v)) / 1e6 for k, v in params.items()}
    assert sizes.pop("backbone") == pytest.approx(14.71, abs=0.005)
    assert sizes.pop("fc6") == pytest.approx(102.76, abs=0.01)
    assert sizes.pop("fc7") == pytest.approx(16.78, abs=0.005)
    assert sum(sizes.values()) == pytest.approx(1.46, abs=0.005)
    assert sorted(sizes) == sorted(
        ["cls", "det", *(f"{head}_{k}" for head in ("refine", "deltas") for k in range(3))]
    )
    trained = flax.traverse_util.flatten_dict(params["backbone"], sep="/")
    frozen = sum(v.size for k, v in trained.items() if is_frozen(settings, f"backbone/{k}"))
    assert frozen == 260_160
