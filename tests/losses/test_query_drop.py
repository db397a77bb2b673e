"""Query drop against NumPy's percentiles, on one device and on several; gradients of the mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weaksam_jax.losses.query_drop import _floor_share, drop_queries, normalise, query_drop


def numpy_keep(loss, ranked, percentile):
    """Equation 3 of one layer."""
    keep = np.ones(loss.shape, bool)
    if ranked.any():
        limit = np.percentile(loss[ranked], percentile, method="inverted_cdf")
        keep = ~ranked | (loss <= limit)
    return keep


def random_queries(seed, shape=(3, 4, 20), share=0.5):
    rng = np.random.default_rng(seed)
    loss = rng.uniform(0, 5, shape).astype(np.float32)
    return loss, rng.random(shape) < share, rng.random(shape) < 0.9


def flat(*arrays):
    """`[L, B, Q]` -> `[L, B * Q]`."""
    return tuple(x.reshape(len(x), -1) for x in arrays)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 7, 60]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([100, 90, 80, 97.5, 0]),
    st.booleans(),
)
def test_query_drop_is_equation_3(seed, count, share, percentile, ties):
    loss, matched, _ = random_queries(seed, (2, count), share)
    loss = np.round(loss) if ties else loss
    want = [numpy_keep(*layer, percentile) for layer in zip(loss, matched, strict=True)]
    np.testing.assert_array_equal(query_drop(loss, matched, percentile), want)


def test_query_drop_counts():
    loss = jnp.arange(40.0)
    for matched, dropped in ((9, 0), (10, 1), (20, 2), (40, 4)):
        keep = query_drop(loss, jnp.arange(40) < matched)
        np.testing.assert_array_equal(np.flatnonzero(~keep), np.arange(matched - dropped, matched))


@pytest.mark.parametrize("percentile", [90, 99.99, 0, 33.3])
def test_counts_beyond_int32_times_ten_thousand(percentile):
    for count in (9, 10, 9_999, 230_400, 20_000_003):
        want = (10_000 - round(100 * percentile)) * count // 10_000
        assert int(_floor_share(jnp.int32(count), percentile)) == want


def test_things_alone_or_with_background():
    """Both groups are moved and scaled to 0..1 on their own, then ranked as one (appendix C)."""
    loss, positive, valid = flat(*random_queries(1, share=0.2))
    loss = np.where(positive, loss + 3, loss / 50)
    things = drop_queries(loss, positive, valid, percentile=80)
    both = drop_queries(loss, positive, valid, percentile=80, background=True)
    dropped = {"things": 0, "background": 0}
    for layer in range(len(loss)):
        own, fg, ok = loss[layer], positive[layer] & valid[layer], valid[layer]
        np.testing.assert_array_equal(things[layer], numpy_keep(own, fg, 80))
        ranks = np.zeros_like(own)
        for group in (fg, ok & ~fg):
            low, high = own[group].min(), own[group].max()
            ranks[group] = (own[group] - low) / (high - low)
        want = numpy_keep(ranks, ok, 80)
        np.testing.assert_array_equal(both[layer], want)
        dropped["things"] += (~want & fg).sum()
        dropped["background"] += (~want & ~fg).sum()
    assert min(dropped.values()) > 0
    assert np.asarray(things | positive).all() and np.asarray(both | valid).all()


def test_a_group_of_one_value_and_an_empty_group_are_finite():
    loss = jnp.asarray([2.0, 2.0, 5.0])
    same = normalise(loss, jnp.asarray([True, True, False]))
    np.testing.assert_array_equal(same[:2], [0, 0])
    assert np.isfinite(normalise(loss, jnp.zeros(3, bool))).all()
    assert normalise(loss[:0], jnp.zeros(0, bool)).shape == (0,)
    assert drop_queries(loss[:0], jnp.zeros(0, bool), jnp.zeros(0, bool)).shape == (0,)


@pytest.mark.parametrize("background", [False, True])
def test_devices_rank_all_queries_together(background):
    """Image by image on four devices as all on one; each on its own it is another mask."""
    loss, positive, valid = random_queries(2)
    options = {"percentile": 80, "background": background}
    whole = drop_queries(*flat(loss, positive, valid), **options).reshape(loss.shape)

    def of_device(axis_name):
        def keep(*one):
            return drop_queries(*one, **options, axis_name=axis_name)

        over = jax.vmap(keep, in_axes=1, out_axes=1, axis_name="devices")
        return np.asarray(over(loss, positive, valid))

    np.testing.assert_array_equal(of_device("devices"), whole)
    assert (of_device(None) != np.asarray(whole)).any()


def test_a_loss_that_is_not_finite_is_not_kept_and_does_not_move_the_limit():
    loss, yes = jnp.arange(20.0).at[3].set(jnp.nan), jnp.ones(20, bool)
    np.testing.assert_array_equal(np.flatnonzero(~query_drop(loss, yes)), [3, 18, 19])


def test_no_gradient_through_the_mask():
    loss, yes = jnp.linspace(0.0, 6.0, 20), jnp.ones(20, bool)

    def kept(x):
        keep = drop_queries(x, yes, yes, background=True) & query_drop(x, yes)
        return jnp.sum(keep * 1.0 * jax.lax.stop_gradient(x))

    np.testing.assert_array_equal(jax.grad(kept)(loss), np.zeros(20))
