"""The code of tokens' places, with detrex's offset, against a loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from weaksam_jax.detectors.dino.encoder import DeformableEncoder
from weaksam_jax.detectors.dino.positions import image_extent, token_codes

SHAPES, PADDED = ((3, 4), (2, 2)), (24, 32)
SIZE = np.array([[24, 32], [15, 20]])


def by_hand(channels, temperature, offset):
    """detrex's `PositionEmbeddingSine`, normalised, one token and channel at a time; 0 outside."""
    codes = np.zeros((2, sum(h * w for h, w in SHAPES), channels))
    half = channels // 2
    for image, size in enumerate(SIZE):
        token = 0
        for height, width in SHAPES:
            rows = [r for r in range(height) if r * PADDED[0] // height < size[0]]
            columns = [c for c in range(width) if c * PADDED[1] // width < size[1]]
            for r in range(height):
                for c in range(width):
                    places = ((r, rows), (c, columns))
                    for axis, (place, own) in enumerate(places):
                        share = (place + 1 + offset) / (len(own) + 1e-6) * 2 * np.pi
                        for k in range(half):
                            angle = share / temperature ** (2 * (k // 2) / half)
                            value = np.cos(angle) if k % 2 else np.sin(angle)
                            codes[image, token, axis * half + k] = value
                    if r not in rows or c not in columns:
                        codes[image, token] = 0
                    token += 1
    return codes


@pytest.mark.parametrize(("temperature", "offset"), [(20.0, 0.0), (10_000.0, -0.5)])
def test_codes_of_tokens_in_the_image(temperature, offset):
    extent = image_extent(SIZE, PADDED, SHAPES)
    found = token_codes(extent, 8, temperature, offset)
    inside = np.asarray(extent.valid())[..., None]
    expected = by_hand(8, temperature, offset)
    np.testing.assert_allclose(np.where(inside, found, 0), expected, atol=1e-5)
    assert 0 < inside.sum() < inside.size


def test_the_encoder_has_them():
    extent = image_extent(SIZE, PADDED, SHAPES)
    levels = [jnp.ones((2, h, w, 8)) for h, w in SHAPES]

    @jax.jit
    def run():
        plain = DeformableEncoder(1, 2, 2, ffn_width=8, temperature=20.0)
        params = plain.init(jax.random.key(0), levels, extent)
        kernel = jax.random.normal(jax.random.key(1), (8, 16))
        params["params"]["layer0"]["self_attn"]["sampling_offsets"]["kernel"] = kernel
        moved = plain.clone(offset=-0.5)
        return plain.apply(params, levels, extent), moved.apply(params, levels, extent)

    one, other = run()
    assert one.shape == other.shape and np.abs(one - other).max() > 1e-3
