"""The MIL detector: shapes, independence of images, boxes and padding, tag logits by a loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from weaksam_jax.models.mil import MilDetector, class_evidence
from weaksam_jax.models.mini_cnn import MiniCnn
from weaksam_jax.ops.roi import roi_align, roi_pool

C, N = 3, 6


def detector(pooling, neck=None, backbone=True):
    pool = functools.partial(pooling, spatial_scale=1 / 8, output_size=2)
    trunk = MiniCnn(width=4, name="backbone") if backbone else None
    return MilDetector(C, pool, trunk, neck=neck, width=16, dropout=0.5)


def case(channels=3, cells=48):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, cells, cells, channels)), jnp.float32)
    corner = rng.uniform(0, 30, (2, N, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 18, (2, N, 2))], -1)
    boxes[:, -2:] = 0  # padding
    stride = 8 if channels == 3 else 1
    inside = np.ones((2, cells // stride, cells // stride), bool)
    inside[0, :, 4:] = False
    prior = jnp.asarray(rng.uniform(size=(2, N, C)), jnp.float32)
    return images, jnp.asarray(inside), jnp.asarray(boxes, jnp.float32), prior


@pytest.mark.parametrize(("pooling", "neck"), [(roi_align, None), (roi_pool, 5)])
def test_shapes_and_independence(pooling, neck):
    model = detector(pooling, neck)
    images, inside, boxes, prior = case()
    variables = jax.jit(model.init)(jax.random.key(0), images, inside, boxes, prior)
    run = jax.jit(model.apply)
    logits, outputs = run(variables, images, inside, boxes, prior)
    assert logits.shape == (2, C)
    assert [x.shape for x in outputs] == [
        *((2, N, C + 1), (2, N, C + 1), (2, 3, N, C + 1), (2, 3, N, C + 1, 4))
    ]
    assert all(np.isfinite(x).all() for x in outputs)
    # The order of the boxes does not matter to each of them, nor the other image.
    turned = run(variables, images[::-1], inside[::-1], boxes[::-1, ::-1], prior[::-1, ::-1])[1]
    for one, other in zip(outputs, turned, strict=True):
        axis = 1 if one.ndim == 3 else 2
        np.testing.assert_allclose(one, jnp.flip(other[::-1], axis), atol=1e-5)
    # The branches differ: they share fc6 and fc7, not their last layers.
    assert np.abs(outputs.refine[:, 0] - outputs.refine[:, 1]).max() > 1e-4


def test_dropout_is_for_training_alone():
    model = detector(roi_align)
    images, inside, boxes, prior = case()
    variables = jax.jit(model.init)(jax.random.key(0), images, inside, boxes, prior)

    @functools.partial(jax.jit, static_argnums=1)
    def cls(key, train):
        rngs = {"dropout": key}
        return model.apply(variables, images, inside, boxes, prior, train, rngs=rngs)[1].cls

    keys = jax.random.key(1), jax.random.key(2)
    np.testing.assert_array_equal(cls(keys[0], False), cls(keys[1], False))
    np.testing.assert_array_equal(cls(keys[0], True), cls(keys[0], True))
    assert np.abs(cls(keys[0], True) - cls(keys[1], True)).max() > 1e-4


def test_tag_logits_are_the_mean_of_the_best_cells_inside():
    model = detector(roi_align, backbone=False)
    images, inside, boxes, prior = case(channels=5, cells=6)
    variables = model.init(jax.random.key(0), (images,), inside, boxes, prior)
    maps = model.apply(variables, (images.astype(jnp.float16),), method="features")
    logits = model.apply(variables, maps, inside, 6, method="tag_logits")
    kernel, bias = (np.asarray(variables["params"]["tags"][k]) for k in ("kernel", "bias"))
    for image in range(2):
        cells = np.asarray(images[image].astype(jnp.float16), np.float32)[np.asarray(inside[image])]
        scores = np.sort(cells @ kernel[0, 0] + bias, axis=0)[::-1]
        np.testing.assert_allclose(logits[image], scores[:6].mean(0), atol=1e-5)


def test_cached_maps_get_the_same_treatment_as_the_backbones():
    model, bare = detector(roi_align), detector(roi_align, backbone=False)
    images, inside, boxes, prior = case()
    variables = jax.jit(model.init)(jax.random.key(0), images, inside, boxes, prior)
    params = dict(variables["params"])
    maps = MiniCnn(width=4).apply({"params": params.pop("backbone")}, images)
    through = model.apply(variables, images, inside, boxes, prior)
    cached = bare.apply({"params": params}, (maps,), inside, boxes, prior)
    for one, other in zip(jax.tree.leaves(through), jax.tree.leaves(cached), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_two_cached_maps_meet_at_the_size_of_the_finer():
    pool = functools.partial(roi_align, spatial_scale=1 / 8, output_size=2)
    model = MilDetector(C, pool, None, 2, 7, width=16)
    rng = np.random.default_rng(1)
    fine, coarse = (rng.normal(size=(2, n, n, f)).astype(np.float16) for n, f in ((6, 4), (3, 5)))
    _, inside, boxes, prior = case(channels=5, cells=6)
    variables = model.init(jax.random.key(0), (fine, coarse), inside, boxes, prior)
    maps = model.apply(variables, (fine, coarse), method="features")
    first, second = (variables["params"][f"necks_{i}"]["kernel"][0, 0] for i in range(2))
    for y, x in ((0, 0), (3, 4), (5, 5)):
        expected = np.maximum(fine[:, y, x] @ first + coarse[:, y // 2, x // 2] @ second, 0)
        np.testing.assert_allclose(maps[:, y, x], expected, atol=2e-3)


def test_evidence_is_inside_less_frame_and_joins_the_prior():
    """On maps that are constant in blocks, against sums over pixels; only the detection stream
    has it."""
    pool = functools.partial(roi_align, spatial_scale=1.0, output_size=16, sampling_ratio=1)
    maps = np.zeros((1, 40, 40, 2), np.float32)
    maps[0, 10:20, 10:20, 0] = 0.8  # just the first box
    maps[0, 24:40, 24:40, 1] = 0.5  # twice the sides of the second
    boxes = jnp.asarray([[[10, 10, 20, 20], [28, 28, 36, 36]]], jnp.float32)
    found = np.asarray(class_evidence(pool, jnp.asarray(maps), boxes))[0]
    assert found.shape == (2, 3) and (found[:, 0] == 0).all()
    assert found[0, 1] == pytest.approx(0.8, abs=0.1) and found[0, 2] == 0
    assert found[1, 2] == pytest.approx(0.5 - 1.5 * 0.5, abs=0.05)
    plain, evident = (
        MilDetector(2, pool, None, 1, None, 16, evidence=weight) for weight in (0.0, 3.0)
    )
    inside, prior = np.ones((1, 40, 40), bool), jnp.asarray([[[0.25, 0.75], [0.5, 0.125]]])
    nothing = jnp.zeros_like(prior)
    variables = plain.init(jax.random.key(0), (maps,), inside, boxes, prior)
    shares = jax.nn.sigmoid(plain.apply(variables, maps, method=lambda m, x: m.tags(x)))
    want = 3 * class_evidence(pool, shares, boxes)
    want = want.at[..., 1:].add(prior)
    a = plain.apply(variables, (maps,), inside, boxes, nothing)[1]
    b = evident.apply(variables, (maps,), inside, boxes, prior)[1]
    np.testing.assert_allclose(b.det - a.det, want, atol=1e-5)
    for name in ("cls", "refine", "deltas"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
