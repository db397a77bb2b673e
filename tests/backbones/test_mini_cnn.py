"""The mini backbone: stride, channels, what padding may change, learning."""

import jax
import jax.numpy as jnp
import numpy as np

from weaksam_jax.backbones.mini_cnn import MiniCnn, MiniPyramid


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


def test_every_parameter_learns():
    model = MiniCnn(width=8)
    image = jax.random.normal(jax.random.key(0), (2, 32, 48, 3))
    variables = jax.jit(model.init)(jax.random.key(1), image)
    energy = jax.jit(jax.grad(lambda v: (model.apply(v, image) ** 2).mean()))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(energy(variables)))


def test_the_pyramid_begins_with_the_same_network():
    """So that a MIL detector's backbone is the stem of the one that is retrained."""
    image = jax.random.normal(jax.random.key(0), (1, 64, 96, 3))
    pyramid, single = MiniPyramid(width=8), MiniCnn(width=8)
    params = jax.jit(pyramid.init)(jax.random.key(1), image)["params"]
    maps = jax.jit(pyramid.apply)({"params": params}, image)
    assert [one.shape for one in maps] == [(1, 64 // s, 96 // s, 32) for s in (8, 16, 32)]
    alone = jax.jit(single.apply)({"params": params["stem"]}, image)
    np.testing.assert_allclose(maps[0], alone, atol=1e-6)
