"""Deformable attention against a loop over its samples and against PyTorch's form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from golden_dino import close, need, of_case
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_deformable import loop, torch_form

from weaksam_jax.engine.step import count_compilations
from weaksam_jax.ops.deformable_attention import (
    deformable_attention,
    deformable_attention_of_images,
)

SHAPES = ((5, 7), (3, 4), (2, 2), (1, 1))
INFINITE = (np.nan, np.inf, -np.inf, 1e30)


def arrays_of(seed, shapes=SHAPES, queries=6, heads=3, points=2, channels=5, spread=0.3):
    """(value, locations, weights, gradient): float32, places up to `spread` outside of the maps."""
    rng = np.random.default_rng(seed)
    value = rng.normal(size=(sum(h * w for h, w in shapes), heads, channels))
    locations = rng.uniform(-spread, 1 + spread, (queries, heads, len(shapes), points, 2))
    weights = rng.normal(size=locations.shape[:-1])
    every = value, locations, weights, rng.normal(size=(queries, heads, channels))
    return [one.astype(np.float32) for one in every]


def with_gradients(value, shapes, locations, weights, gradient, chunk=None):
    def run(value, locations, weights):
        return deformable_attention(value, shapes, locations, weights, chunk=chunk)

    out, back = jax.vjp(jax.jit(run), *map(jnp.asarray, (value, locations, weights)))
    return out, *back(jnp.asarray(gradient, out.dtype))


@settings(max_examples=6)
@given(
    seed=st.integers(0, 10_000),
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
)
def test_it_equals_a_loop_with_all_its_gradients(seed, shapes):
    value, locations, weights, gradient = arrays_of(seed, tuple(shapes), queries=3, heads=2)
    ours = with_gradients(value, tuple(shapes), locations, weights, gradient)
    theirs = loop(value, shapes, locations, weights, gradient)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * max(1, np.abs(other).max()))


def test_it_equals_pytorchs_form_with_all_its_gradients():
    value, locations, weights, gradient = arrays_of(1, queries=150, channels=8)
    ours = with_gradients(value, SHAPES, locations, weights, gradient)
    tensors = [torch.tensor(one, requires_grad=True) for one in (value, locations, weights)]
    out = torch_form(tensors[0], SHAPES, *tensors[1:])
    out.backward(torch.tensor(gradient))
    for one, other in zip(ours, (out.detach(), *(t.grad for t in tensors)), strict=True):
        close(one, other, 1e-5)


@pytest.mark.parametrize("unit", ["msda_enc0", "msda_dec0"])
def test_it_equals_the_reference_implementation(unit):
    case = of_case("transformer", "g35")
    need(case, f"{unit}.value")
    shapes = tuple(map(tuple, case["pre.spatial_shapes"].tolist()))

    def attend(value, locations, weights):
        return deformable_attention_of_images(value, shapes, locations, weights)

    inputs = [jnp.asarray(case[f"{unit}.{name}"]) for name in ("value", "loc", "attn")]
    out = jax.jit(attend)(*inputs)
    close(out.reshape(case[f"{unit}.out"].shape), case[f"{unit}.out"], 1e-6)


def test_whole_cells_and_borders():
    """At centres of cells it is the cell; half a cell outside half of it; a cell outside nothing,
    whatever number stands for the place."""
    value = np.arange(1, 13, dtype=np.float32).reshape(12, 1, 1)
    places = [[0.125, 0.5], [0.875, 5 / 6], [0.0, 0.5], [1.125, 0.5], [-0.2, 0.5]]
    places += [[0.5, one] for one in INFINITE] + [[one, 0.5] for one in INFINITE]
    locations = np.asarray(places, np.float32).reshape(-1, 1, 1, 1, 2)
    ones = np.ones(locations.shape[:-1], np.float32)
    found = with_gradients(value, ((3, 4),), locations, ones, np.ones((len(places), 1, 1)))
    expected = [5, 12, 2.5, 0, 0] + [0] * 2 * len(INFINITE)
    np.testing.assert_allclose(found[0][:, 0, 0], expected, atol=1e-5)
    assert all(np.isfinite(one).all() for one in found)


@pytest.mark.parametrize("chunk", [0, 1, 7, 16, 40, 100])
def test_chunks_change_nothing(chunk):
    value, locations, weights, gradient = arrays_of(4, queries=40)
    usual = with_gradients(value, SHAPES, locations, weights, gradient)
    ours = with_gradients(value, SHAPES, locations, weights, gradient, chunk=chunk)
    for one, other in zip(ours, usual, strict=True):
        close(one, other, 1e-6)


def test_bfloat16_values_keep_float32_positions_and_sums():
    value, locations, weights, gradient = arrays_of(2, queries=400)  # several chunks
    locations = np.broadcast_to(locations[:1], locations.shape)  # all add to the same cells
    narrow = jnp.asarray(value, jnp.bfloat16)
    ours = with_gradients(narrow, SHAPES, locations, weights, gradient)
    assert ours[0].dtype == ours[1].dtype == jnp.bfloat16
    assert ours[2].dtype == ours[3].dtype == jnp.float32
    rounded = np.asarray(jnp.asarray(gradient, jnp.bfloat16), np.float32)
    theirs = loop(np.asarray(narrow, np.float32), SHAPES, locations, weights, rounded)
    for one, other, tolerance in zip(ours, theirs, (4e-3, 4e-3, 1e-5, 1e-5), strict=True):
        close(np.asarray(one, np.float32), other, tolerance)


def test_the_program_does_not_grow_with_points_or_queries_and_is_compiled_once():
    def lines(queries, points):
        value, locations, weights, _ = arrays_of(3, queries=queries, points=points)
        inputs = value, locations, weights
        made = jax.make_jaxpr(lambda v, p, w: deformable_attention(v, SHAPES, p, w))(*inputs)
        return str(made).count(" = ")

    assert lines(100, 1) == lines(300, 1) and lines(100, 2) == lines(300, 9)

    @jax.jit
    def attend(value, locations, weights):
        return deformable_attention(value, SHAPES, locations, weights)

    with count_compilations("attend") as compiled:
        for seed in range(3):
            attend(*arrays_of(seed, spread=seed)[:3])
    assert len(compiled) == 1


def test_shapes_that_do_not_fit_are_refused():
    value, locations, weights, _ = arrays_of(0)
    for shapes in (SHAPES[:3], (*SHAPES[:3], (2, 1))):
        with pytest.raises(ValueError, match="do not fit 52 cells and 4 levels"):
            deformable_attention(value, shapes, locations, weights)
