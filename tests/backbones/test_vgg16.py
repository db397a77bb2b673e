"""VGG16: its features against plain PyTorch, frozen blocks, bfloat16, its size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bridge.weights.vgg16 import vgg16_arrays
from experiments.bench import torch_mil as plain_mil
from weaksam_jax.backbones import is_frozen
from weaksam_jax.backbones.vgg16 import FACTORS, Vgg16
from weaksam_jax.detectors.mil import MilConfig, MilDetector
from weaksam_jax.detectors.mil.config import MilOptimConfig, ModelConfig
from weaksam_jax.engine.optimizer import freeze
from weaksam_jax.engine.weights import flatten, unflatten

WIDTH = 4
CHANNELS = tuple(factor * WIDTH for factor in FACTORS)


def small_vgg(tmp_path, layout="caffe"):
    """(published tensors, parameters of Vgg16) of the same random weights."""
    state = plain_mil.random_state(layout, CHANNELS, 5, 1, side=2)
    torch.save(state, tmp_path / "vgg.pth")
    return state, unflatten(vgg16_arrays(tmp_path / "vgg.pth")[0])["backbone"]


def images(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, 48, 64, 3)).astype(np.float32)


@pytest.mark.parametrize("rectify_last", [False, True])
def test_features_equal_plain_pytorch(tmp_path, rectify_last):
    state, params = small_vgg(tmp_path)
    x = images()
    model = Vgg16(WIDTH, rectify_last)
    found = jax.jit(model.apply)({"params": params}, x)
    nchw = torch.from_numpy(x).permute(0, 3, 1, 2)
    expected = plain_mil.vgg_features(state, "features.", nchw, True, rectify_last)
    expected = expected.permute(0, 2, 3, 1).numpy()
    assert found.shape == (2, 6, 8, 32) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert (expected.min() < -0.1) != rectify_last  # the last ReLU makes a difference


def test_bfloat16_is_near_and_keeps_float32_outside(tmp_path):
    _, params = small_vgg(tmp_path)
    x = images()
    exact, half = (
        jax.jit(Vgg16(WIDTH, dtype=dtype).apply)({"params": params}, x)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    fresh = jax.eval_shape(Vgg16(WIDTH, dtype=jnp.bfloat16).init, jax.random.key(0), x)
    assert half.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    error = np.abs(half - exact)
    assert 0 < error.max() < 0.05 * np.abs(exact).max()  # 8 bits, thirteen layers
    assert error.mean() < 0.01 * np.abs(exact).max()


@pytest.mark.parametrize(("frozen", "trained"), [((), 13), (("conv1", "conv2"), 9), (("*",), 0)])
def test_frozen_blocks_have_no_gradient_and_cost_none(tmp_path, frozen, trained):
    _, params = small_vgg(tmp_path)
    model, x = Vgg16(WIDTH), images()

    def energy(params):
        held = freeze({"backbone": params}, lambda path: is_frozen(path, "vgg16", frozen))[
            "backbone"
        ]
        return (model.apply({"params": held}, x) ** 2).sum()

    gradient = jax.jit(jax.grad(energy))
    for name, leaf in gradient(params).items():
        still = "*" in frozen or name[:5] in frozen
        assert bool(leaf["kernel"].any()) != still, name
        assert bool(leaf["bias"].any()) != still, name
    # Forward 13 (none when there is nothing to train); behind each trained layer one for
    # its kernel and one for its input, but for the input of the first. (CPUs have products, too.)
    program = gradient.trace(params).lower(lowering_platforms=("tpu",))
    found = program.as_text().count("stablehlo.convolution")
    assert found == (13 + 2 * trained - 1 if trained else 0)


def published(frozen=("conv1", "conv2")):
    """MIST on VOC."""
    model = ModelConfig(
        backbone="vgg16", fc_width=4096, pooling="max", pool_size=7, class_maps=False, evidence=0.0
    )
    return MilDetector(MilConfig(model=model, optim=MilOptimConfig(frozen=frozen)), 20)


def test_frozen_parameters_have_the_names_that_the_optimizer_asks_for(tmp_path):
    names = [f"backbone/{name}/kernel" for name in small_vgg(tmp_path)[1]]
    frozen = [name for name in names if published().frozen(name.split("/"))]
    assert sorted(frozen) == [f"backbone/conv{b}_{k}/kernel" for b in (1, 2) for k in (1, 2)]
    assert not published(()).frozen(names[0].split("/"))


def test_parameters_of_the_published_network():
    """Numbers of docs/provenance/mil.md: MIST on VOC."""
    params = published().shapes()
    sizes = {k: sum(x.size for x in jax.tree.leaves(v)) / 1e6 for k, v in params.items()}
    assert sizes.pop("backbone") == pytest.approx(14.71, abs=0.005)
    assert sizes.pop("fc6") == pytest.approx(102.76, abs=0.01)
    assert sizes.pop("fc7") == pytest.approx(16.78, abs=0.005)
    assert sum(sizes.values()) == pytest.approx(1.46, abs=0.005)
    assert sorted(sizes) == sorted(
        ["cls", "det", *(f"{head}_{k}" for head in ("refine", "deltas") for k in range(3))]
    )
    frozen = [x.size for k, x in flatten(params).items() if published().frozen(k.split("/"))]
    assert sum(frozen) == 260_160


def test_a_config_that_says_nothing_freezes_the_backbones_own_part():
    for name, frozen in (("conv1_1", True), ("conv2_2", True), ("conv3_1", False)):
        path = ["backbone", name, "kernel"]
        assert is_frozen(path, "vgg16", None) is frozen
        assert not is_frozen(path, "vgg16", ())
