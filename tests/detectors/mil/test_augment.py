"""Lighting noise: its distribution, and that training samples get it and nothing else does."""

import numpy as np
import pytest
from configs import vary
from tiny_mil import TINY

from weaksam_jax.data.augment import LIGHT_VALUES, LIGHT_VECTORS, AugmentConfig, light_noise
from weaksam_jax.data.views import View
from weaksam_jax.detectors.mil.samples import MilSamples


def test_the_noise_has_the_covariance_of_the_principal_colours():
    rng, image = np.random.default_rng(0), np.full((1, 1, 3), 128, np.uint8)
    moved = np.asarray([light_noise(image, 0.3, rng)[0, 0] for _ in range(20000)], float) - 128
    want = np.zeros((3, 3))
    for k in range(3):
        vector = 255 * 0.3 * LIGHT_VALUES[k] * LIGHT_VECTORS[:, k]
        want += np.outer(vector, vector)
    np.testing.assert_allclose(np.cov(moved.T), want + np.eye(3) / 12, rtol=0.03, atol=0.05)
    assert np.abs(moved.mean(0)).max() < 0.3
    grey = np.sqrt(want.mean()) / 3  # at MIST's 0.1, as the docstring says
    assert grey == pytest.approx(3.2, abs=0.1)
    np.testing.assert_allclose(LIGHT_VECTORS.T @ LIGHT_VECTORS, np.eye(3), atol=1e-3)


def test_one_shift_for_all_pixels_cut_to_bytes():
    image = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    noisy = light_noise(image, 1.0, np.random.default_rng(2))
    assert noisy.dtype == np.uint8
    shift = 255 * LIGHT_VECTORS @ (LIGHT_VALUES * np.random.default_rng(2).normal(0, 1.0, 3))
    for y in range(9):
        for x in range(7):
            for c in range(3):
                want = min(max(round(float(image[y, x, c]) + shift[c]), 0), 255)
                assert noisy[y, x, c] == want


def test_only_training_samples_are_lit_and_the_padding_stays(drawn):
    train, _, proposals = drawn
    quiet, lit = (
        vary(TINY, data={"augment": AugmentConfig(scale=(0.6, 0.6), lighting=lighting)})
        for lighting in (0.0, 0.5)
    )
    plain, noisy = (
        MilSamples(train, proposals, one)(0, (0, 0), np.random.default_rng(3))
        for one in (quiet, lit)
    )
    height, width = plain["size"].astype(int)
    moved = noisy["image"].astype(int) - plain["image"]
    assert (moved[:height, :width].mean((0, 1)) != 0).all()
    assert not noisy["image"][height:].any() and not noisy["image"][:, width:].any()
    for name in plain.keys() - {"image"}:
        np.testing.assert_array_equal(plain[name], noisy[name])
    shown = [
        MilSamples(train, proposals, one).show(0, slice(5), View(0, False)) for one in (quiet, lit)
    ]
    np.testing.assert_array_equal(shown[0]["image"], shown[1]["image"])  # none at test
