"""The best of a long row in parts: the same as all at once, ties included."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weaksam_jax.ops.ranking import PART, in_parts, top_k


@settings(max_examples=25)
@given(st.integers(1, 400), st.integers(1, 60), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_parts_are_ranked_as_a_whole(total, count, part, seed):
    """Against NumPy's stable sort: few values, so that most are equal, and those of no rank."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-3, 4, total).astype(np.float32)
    values[rng.random(total) < 0.2] = -np.inf
    count = min(count, total)
    with jax.disable_jit():
        best, places = in_parts(jnp.asarray(values), count, part)
    expected = np.argsort(-values, kind="stable")[:count]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_array_equal(best, values[expected])
    assert places.dtype == np.int32


def test_a_tpu_sorts_no_long_row_and_a_cpu_none_in_parts():
    rows = jax.ShapeDtypeStruct((2, 25 * PART - 7), jnp.float32)
    run = jax.jit(jax.vmap(lambda row: top_k(row, 1000)))
    sorted_by = {}
    for platform in ("tpu", "cpu"):
        text = run.trace(rows).lower(lowering_platforms=(platform,)).as_text()
        sorted_by[platform] = re.findall(r"top_k.*?: \(?tensor<([0-9x]+)xf32>", text)
    assert sorted_by["tpu"] == [f"2x25x{PART}", "2x25000"]
    assert sorted_by["cpu"] == [f"2x{25 * PART - 7}"]


@pytest.mark.parametrize("total", [PART, 3 * PART + 5])
def test_the_results_are_those_of_jax(total):
    values = np.random.default_rng(0).normal(size=total).astype(np.float32)
    for count in (1, 300, 2000):
        ours = in_parts(jnp.asarray(values), count)
        for one, other in zip(ours, jax.lax.top_k(values, count), strict=True):
            np.testing.assert_array_equal(one, other)
