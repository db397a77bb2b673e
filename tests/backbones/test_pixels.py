"""What networks are shown, by hand: channel order, mean and deviation, zero padding."""

import jax.numpy as jnp
import numpy as np
import pytest

from weaksam_jax.backbones import BACKBONES
from weaksam_jax.backbones.pixels import PIXELS, network_input
from weaksam_jax.ops.padding import inside_mask

RED, GREEN, BLUE = 200.0, 100.0, 50.0
BY_HAND = {
    "mist": [BLUE - 102.9801, GREEN - 115.9465, RED - 122.7717],
    "oicr": [BLUE - 104, GREEN - 117, RED - 124],
    "msra": [BLUE - 103.53, GREEN - 116.28, RED - 123.675],
    "torchvision": [
        (RED / 255 - 0.485) / 0.229,
        (GREEN / 255 - 0.456) / 0.224,
        (BLUE / 255 - 0.406) / 0.225,
    ],
    "lite0": [(RED - 127) / 128, (GREEN - 127) / 128, (BLUE - 127) / 128],
    "mini": [RED / 127.5 - 1, GREEN / 127.5 - 1, BLUE / 127.5 - 1],
}


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_by_hand(name):
    found = PIXELS[name](np.array([[[RED, GREEN, BLUE]]], np.uint8))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[0, 0], BY_HAND[name], rtol=1e-5)


def test_every_backbone_is_shown_what_its_weights_were_trained_on():
    named = {name: backbone.pixels for name, backbone in BACKBONES.items()}
    assert named == {
        "mini_cnn": "mini",
        "lite0": "lite0",
        "vgg16": "mist",
        "resnet50": "torchvision",
        "resnet50_msra": "msra",
    }


def test_the_mini_range():
    white = PIXELS["mini"](np.full((1, 2, 2, 3), 255, np.uint8))
    np.testing.assert_allclose([white.min(), white.max()], 1.0)
    np.testing.assert_allclose(PIXELS["mini"](np.zeros((1, 2, 2, 3), np.uint8)), -1.0)


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_of_the_padding_are_zero(name):
    images = np.random.default_rng(0).integers(0, 256, (1, 6, 8, 3), dtype=np.uint8)
    expected = np.array(PIXELS[name](images))
    expected[:, 4:], expected[:, :, 5:] = 0, 0
    np.testing.assert_array_equal(network_input(images, np.float32([[4, 5]]), name), expected)


def test_the_padding_is_zero_after_the_mean_is_taken_off():
    image, size = np.full((1, 16, 24, 3), 7, np.uint8), np.array([[9.0, 20.0]])
    x = np.asarray(network_input(image, size, "oicr"))
    assert (x[0, :9, :20] == [7 - 104, 7 - 117, 7 - 124]).all()
    assert not x[0, 9:].any() and not x[0, :, 20:].any()
    # A cell of the map (stride 8) counts as inside when it starts before the image's end.
    assert np.asarray(inside_mask(size / 8, 2, 3)).all()
    assert inside_mask(np.array([[8.0, 16.0]]) / 8, 2, 3)[0].tolist() == [
        [True, True, False],
        [False] * 3,
    ]
