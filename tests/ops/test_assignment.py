"""Assignments against scipy's, on random costs with padding, ties and spoiled entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from weaksam_jax.ops.assignment import assign, assign_all

solve = jax.jit(assign_all)


def scipy_best(cost):
    """(rows, columns, total in float64)."""
    rows, columns = linear_sum_assignment(cost)
    return rows, columns, cost[rows, columns].sum(dtype=np.float64)


def pairs_of(found, problem):
    """The assigned (targets, queries) of a problem; both forms of the result must say the same."""
    query, target = (np.asarray(one[problem]) for one in found)
    rows, columns = np.flatnonzero(query >= 0), query[query >= 0]
    assert len(set(columns)) == len(columns) == (target >= 0).sum()
    assert (target[columns] == rows).all()
    return rows, columns


def second_best(cost, rows, columns):
    """The least total without one of the pairs of an assignment (infinite: there is no other)."""
    totals = []
    for pair in zip(rows, columns, strict=True):
        forbidden = cost.astype(np.float64)
        forbidden[pair] = 1e9
        total = scipy_best(forbidden)[2]
        totals.append(total if total < 1e8 else np.inf)
    return min(totals, default=np.inf)


def check(cost, valid):
    """Every problem `[N, G, Q]` has scipy's total, and of every fifth scipy's assignment where it
    is the only best; returns how many of them that were."""
    found, unique = jax.device_get(solve(cost, valid)), 0
    for problem, (own, ok) in enumerate(zip(cost, valid, strict=True)):
        rows, columns = pairs_of(found, problem)
        assert set(rows) <= set(np.flatnonzero(ok))
        kept = np.flatnonzero(ok)
        best_rows, best_columns, best = scipy_best(own[kept])
        assert len(rows) == len(best_rows)
        total = own[rows, columns].sum(dtype=np.float64)
        assert abs(total - best) <= 1e-5 * max(1, np.abs(own).max())
        if problem % 5:
            continue
        if second_best(own[kept], best_rows, best_columns) > best + 1e-4 * np.abs(own).max():
            assert (kept[best_rows] == rows).all() and (best_columns == columns).all()
            unique += 1
    return unique


def random_costs(kind, shape, rng):
    if kind == "ties":
        return rng.integers(-2, 3, shape).astype(np.float32)
    if kind == "eighths":
        return (rng.integers(-400, 400, shape) / 8).astype(np.float32)
    if kind == "alike":  # all rows want the same columns
        return (rng.random((*shape[:-2], 1, shape[-1])) + 0.05 * rng.random(shape)).astype("f4")
    return (rng.standard_normal(shape) * 3).astype(np.float32)


@pytest.mark.parametrize("kind", ["ties", "eighths", "alike", "normal"])
@pytest.mark.parametrize("shape", [(6, 24), (11, 11), (9, 5), (2, 1)])
def test_ten_thousand_problems_are_scipys(kind, shape):
    """625 problems each; in a tenth of them no target is valid, in half of the others some."""
    rng = np.random.default_rng([len(kind), *shape])
    cost = random_costs(kind, (625, *shape), rng)
    share = rng.choice([0.0, 0.5, 1.0], (625, 1), p=[0.1, 0.45, 0.45])
    unique = check(cost, rng.random((625, shape[0])) < share)
    assert unique >= {"normal": 80, "ties": 1}.get(kind, 10)


def test_the_size_of_detectors():
    """Seven layers of two images with up to 100 objects and 900 queries that are much alike."""
    rng = np.random.default_rng(0)
    cost = random_costs("alike", (7, 2, 100, 900), rng)
    valid = np.arange(100) < np.array([[100], [7]])
    found = solve(cost, np.broadcast_to(valid, (7, 2, 100)))
    for layer in range(7):
        for image in range(2):
            rows, columns = pairs_of([one[layer] for one in found], image)
            own = cost[layer, image]
            best = scipy_best(own[valid[image]])[2]
            np.testing.assert_allclose(own[rows, columns].sum(dtype=np.float64), best, rtol=1e-6)


def test_long_paths():
    """Every row prefers the same column and each new row moves those before it."""
    for rows, columns in ((40, 40), (40, 60)):
        steps = np.arange(1, rows + 1)[:, None] * np.arange(1, columns + 1)
        assert check(steps[None].astype(np.float32), np.ones((1, rows), bool)) == 1


number = st.one_of(
    st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -3e38]), st.floats(-8, 8, width=16)
)


@settings(max_examples=80)
@given(
    st.lists(st.lists(number, min_size=6, max_size=6), min_size=4, max_size=4),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_spoiled_costs_are_the_last_resort(rows, valid):
    """As many -inf as can be, then as few NaN and inf; huge numbers stay huge."""
    cost, valid = np.array(rows, np.float32)[None], np.array(valid)[None]
    chosen = pairs_of(solve(cost, valid), 0)
    kept = cost[0][valid[0]].astype(np.float64)
    price = np.where(np.isnan(kept) | np.isposinf(kept), 1.0, np.where(np.isneginf(kept), -1.0, 0))
    best = scipy_best(price)[2]
    values = cost[0][chosen]
    assert len(values) == valid.sum()
    spoiled = np.isnan(values) | np.isposinf(values)
    assert int(spoiled.sum()) - int(np.isneginf(values).sum()) == best
    if np.isfinite(kept).all() and np.abs(kept).max(initial=0) <= 8:
        np.testing.assert_allclose(values.sum(), scipy_best(kept)[2], atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, 3e38])
def test_costs_that_are_all_alike(value):
    cost = np.full((1, 5, 8), value, np.float32)
    rows, columns = pairs_of(solve(cost, np.ones((1, 5), bool)), 0)
    assert rows.tolist() == [0, 1, 2, 3, 4]
    again = pairs_of(solve(cost, np.ones((1, 5), bool)), 0)[1]
    np.testing.assert_array_equal(columns, again)


def test_a_problem_is_solved_alike_alone_in_a_batch_and_under_vmap():
    rng = np.random.default_rng(3)
    cost = random_costs("ties", (3, 4, 6, 9), rng)
    valid = rng.random((3, 4, 6)) < 0.7
    together = solve(cost, valid)
    assert together.query.shape == (3, 4, 6) and together.target.shape == (3, 4, 9)
    alone = [[solve(cost[i, j], valid[i, j]) for j in range(4)] for i in range(3)]
    mapped = jax.jit(jax.vmap(jax.vmap(assign_all)))(cost, valid)
    for field in ("query", "target"):
        wanted = np.asarray(getattr(together, field))
        np.testing.assert_array_equal(getattr(mapped, field), wanted)
        single = np.array([[getattr(one, field) for one in row] for row in alone])
        np.testing.assert_array_equal(single, wanted)


def test_padding_does_not_change_what_is_found():
    rng = np.random.default_rng(4)
    cost = random_costs("normal", (50, 5, 12), rng)
    plain = solve(cost, np.ones((50, 5), bool))
    padded = np.concatenate([cost, np.full((50, 3, 12), np.nan, np.float32)], axis=1)
    found = solve(padded, np.broadcast_to(np.arange(8) < 5, (50, 8)))
    np.testing.assert_array_equal(found.query[:, :5], plain.query)
    np.testing.assert_array_equal(found.query[:, 5:], -1)
    np.testing.assert_array_equal(found.target, plain.target)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_nothing_to_assign(shape):
    found = assign_all(jnp.zeros((2, *shape)), jnp.ones((2, shape[0]), bool))
    assert found.query.shape == (2, shape[0]) and (np.asarray(found.query) == -1).all()
    assert found.target.shape == (2, shape[1]) and (np.asarray(found.target) == -1).all()


def test_no_gradient_flows_through_the_assignment():
    def total(cost):
        query = assign_all(cost, jnp.ones(3, bool)).query
        return jnp.take_along_axis(cost, query[:, None], axis=1).sum()

    cost = jnp.asarray(random_costs("normal", (3, 7), np.random.default_rng(5)))
    gradient = np.asarray(jax.jit(jax.grad(total))(cost))
    rows, columns, _ = scipy_best(np.asarray(cost))
    want = np.zeros((3, 7))
    want[rows, columns] = 1
    np.testing.assert_array_equal(gradient, want)


def test_one_problem_by_the_number_of_its_objects():
    """Queries are the rows here, and the first n columns are objects."""
    run = jax.jit(assign)
    for n in (0, 1, 5, 8):
        cost = np.random.default_rng(n).standard_normal((20, 8)).astype(np.float32)
        found = np.asarray(run(cost, n))
        queries, objects = linear_sum_assignment(cost[:, :n])
        assert found.dtype == np.int32 and found[n:].tolist() == [-1] * (8 - n)
        np.testing.assert_array_equal(found[objects], queries)
    crowded = run(cost[:3], n_valid=8)
    assert sorted(np.asarray(crowded)) == [-1] * 5 + [0, 1, 2]
    assert assign(np.zeros((0, 4)), 4).tolist() == [-1] * 4
