"""The mini backbone: stride, channels, what padding may change, learning."""

import jax
import jax.numpy as jnp
import numpy as np

from weaksam_jax.backbones.mini_cnn import MiniCnn, mini_input


def test_padding_changes_only_cells_near_it():
    model = MiniCnn(width=8)
    image = jax.random.normal(jax.random.key(0), (1, 96, 96, 3))
    variables = jax.jit(model.init)(jax.random.key(1), image)
    apply = jax.jit(model.apply)
    alone = apply(variables, image)
    padded = apply(variables, jnp.pad(image, ((0, 0), (0, 32), (0, 64), (0, 0))))
    assert alone.shape == (1, 12, 12, 32) and padded.shape == (1, 16, 20, 32)
    # Each of the six layers sees one cell of its own stride further: 1 + 2 + 4 + 4 + 8 + 8 < 32.
    np.testing.assert_allclose(alone[:, :8, :8], padded[:, :8, :8], atol=1e-5)
    assert np.abs(alone - padded[:, :12, :12]).max() > 1e-3


def test_input_range_and_that_every_parameter_learns():
    white = mini_input(np.full((1, 2, 2, 3), 255, np.uint8))
    np.testing.assert_allclose([white.min(), white.max()], 1.0)
    np.testing.assert_allclose(mini_input(np.zeros((1, 2, 2, 3), np.uint8)), -1.0)
    model = MiniCnn(width=8)
    image = jax.random.normal(jax.random.key(0), (2, 32, 48, 3))
    variables = jax.jit(model.init)(jax.random.key(1), image)
    energy = jax.jit(jax.grad(lambda v: (model.apply(v, image) ** 2).mean()))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(energy(variables)))
