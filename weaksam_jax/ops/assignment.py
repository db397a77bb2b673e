"""Exact linear assignment of targets to queries, many problems at once.

Jonker and Volgenant's method (Computing 38, 1987; Crouse, IEEE TAES 52, 2016): targets are the
rows, and each row that has no column yet gets one along a shortest augmenting path. A step looks at
one row and all queries of every problem, so the loop's length depends on how many targets want the
same query, and not on the number of queries; a row whose nearest query nobody else wants costs no
step at all. The worst is G targets that all want the same queries in the same order: the path of
the k-th passes by those of all before it, about G (G + 1) / 2 steps in all (100 targets: 4,500,
each of a few vectors of Q numbers per problem). No start that looks at rows alone makes that less:
between such twins bids are ties, and a step that took all rows at once would cost G times as much
in every other case, too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Costs are cut to this, so that no sum of a problem's costs overflows.
_LARGEST = 1e30


class Assignment(NamedTuple):
    """Who belongs to whom; -1: to nobody.

    query: int32 `[..., G]`, of each target. target: int32 `[..., Q]`, of each query.
    """

    query: jax.Array
    target: jax.Array


class _Search(NamedTuple):
    """One problem on its way. G rows, Q columns.

    u `[G]`, v `[Q]`: dual variables. query, target: the assignment so far. reach `[Q]`: length of
    the shortest path from the root to a column; back `[Q]`: the row before it; closed `[Q]`: the
    path is final. root: the row that gets a column (-1: all have one); row: the one looked at;
    low: the length of the path to it; sink: the column that the path's next row gets (-1: the path
    is still looked for).
    """

    u: jax.Array
    v: jax.Array
    query: jax.Array
    target: jax.Array
    reach: jax.Array
    back: jax.Array
    closed: jax.Array
    root: jax.Array
    row: jax.Array
    low: jax.Array
    sink: jax.Array


def assign(cost: jax.Array, n_valid: jax.Array | int) -> jax.Array:
    """The query of each object, int32 `[G]`, -1 for padding: the assignment of least total cost.

    cost: float `[Q, G]`; n_valid: the first so many objects are real, the others padding. With more
    objects than queries, Q of them get one. See `assign_all`, which takes many problems at once.
    """
    cost = jnp.asarray(cost).T
    return assign_all(cost, jnp.arange(len(cost)) < n_valid).query


def assign_all(cost: jax.Array, valid: jax.Array) -> Assignment:
    """The assignments of least total cost: every valid target gets a query of its own.

    cost: float `[..., G, Q]`, computed with in float32; valid: bool `[..., G]`, False for padding,
    which gets no query. With more valid targets than queries, Q of them get one, as in
    `scipy.optimize.linear_sum_assignment`. Equal costs: always the same of the best assignments.
    NaN and +inf are taken as a last resort, -inf before all others: as few (as many) of them are
    chosen as can be. Ends after at most G (G + 1) steps, whatever the costs. No gradient.
    """
    lead, (rows, columns) = cost.shape[:-2], cost.shape[-2:]
    if not cost.size:
        return Assignment(jnp.full((*lead, rows), -1), jnp.full((*lead, columns), -1))
    cost = jax.lax.stop_gradient(cost).astype(jnp.float32).reshape(-1, rows, columns)
    missing = max(rows - columns, 0)
    cost = jnp.pad(cost, ((0, 0), (0, 0), (0, missing)), constant_values=jnp.inf)
    valid = valid.reshape(-1, rows)
    cost = jax.vmap(_finite)(cost, valid)
    searches = _solve(cost, valid)
    query = jnp.where(searches.query < columns, searches.query, -1)
    found = query.reshape(*lead, rows), searches.target[:, :columns].reshape(*lead, columns)
    return Assignment(*found)


def _solve(cost: jax.Array, valid: jax.Array) -> _Search:
    rows = cost.shape[1]

    def unfinished(loop):
        searches, steps = loop
        return jnp.any(searches.root >= 0) & (steps < rows * (rows + 1))

    def step(loop):
        searches, steps = loop
        return jax.vmap(_step)(searches, cost, valid), steps + 1

    # The steps are common to all problems, and one that is done does nothing: a `vmap` of the
    # loop would copy every problem's state in every step instead.
    start = jax.vmap(_start)(cost, valid)
    return jax.lax.while_loop(unfinished, step, (start, jnp.int32(0)))[0]


def _finite(cost: jax.Array, valid: jax.Array) -> jax.Array:
    """Finite costs for the same order of assignments, `[G, Q]`."""
    cut = jnp.clip(cost, -_LARGEST, _LARGEST)
    counts = jnp.isfinite(cost) & valid[:, None]
    some = counts.any()
    low = jnp.where(some, jnp.min(cut, where=counts, initial=_LARGEST), 0)
    high = jnp.where(some, jnp.max(cut, where=counts, initial=-_LARGEST), 0)
    # More than all other costs of an assignment can differ by.
    beyond = len(cost) * (high - low) + jnp.maximum(1, jnp.maximum(jnp.abs(high), jnp.abs(low)))
    cut = jnp.where(jnp.isneginf(cost), low - beyond, cut)
    return jnp.where(jnp.isnan(cost) | jnp.isposinf(cost), high + beyond, cut)


def _start(cost: jax.Array, valid: jax.Array) -> _Search:
    """Each row takes its cheapest column; of several that want the same, the first has it."""
    rows, columns = cost.shape
    row = jnp.arange(rows, dtype=jnp.int32)
    wanted = jnp.argmin(cost, axis=1).astype(jnp.int32)
    before = (wanted[:, None] == wanted[None, :]) & valid[None, :] & (row[None, :] < row[:, None])
    has = valid & ~before.any(axis=1)
    target = jnp.full(columns, -1, jnp.int32)
    target = target.at[jnp.where(has, wanted, columns)].set(row, mode="drop")
    query = jnp.where(has, wanted, -1)
    u, v = jnp.min(cost, axis=1), jnp.zeros(columns)
    root = _next_root(query, valid)
    return _Search(
        u=u,
        v=v,
        query=query,
        target=target,
        reach=jnp.full(columns, jnp.inf),
        back=jnp.zeros(columns, jnp.int32),
        closed=jnp.zeros(columns, bool),
        root=root,
        row=root,
        low=jnp.float32(0),
        sink=jnp.int32(-1),
    )


def _next_root(query: jax.Array, valid: jax.Array) -> jax.Array:
    """The first valid row without a column, -1 if all have one."""
    free = valid & (query < 0)
    return jnp.where(free.any(), jnp.argmax(free), -1).astype(jnp.int32)


def _step(s: _Search, cost: jax.Array, valid: jax.Array) -> _Search:
    """Looks at one row; gives one row of a path that was found its new column."""
    s = _grow(s, cost)
    ended = (s.sink >= 0) & (s.back[s.sink] == s.root)
    s = _flip(s)
    root = jnp.where(ended, _next_root(s.query, valid), s.root)
    return s._replace(
        root=root,
        row=jnp.where(ended, root, s.row),
        low=jnp.where(ended, 0, s.low),
        reach=jnp.where(ended, jnp.inf, s.reach),
        closed=s.closed & ~ended,
    )


def _grow(s: _Search, cost: jax.Array) -> _Search:
    """Dijkstra's step: paths through `row`, and the nearest column that is not closed yet."""
    growing = (s.root >= 0) & (s.sink < 0)
    through = s.low + (cost[s.row] - s.u[s.row] - s.v)
    better = growing & ~s.closed & (through < s.reach)
    reach = jnp.where(better, through, s.reach)
    back = jnp.where(better, s.row, s.back)
    distance = jnp.where(s.closed, jnp.inf, reach)
    low = jnp.min(distance)
    # Of columns equally near one without a target: the path ends there.
    rank = jnp.where(distance > low, 2, jnp.where(s.target < 0, 0, 1))
    column = jnp.argmin(rank).astype(jnp.int32)
    closed = s.closed | (growing & (jnp.arange(len(reach)) == column))
    found = growing & (s.target[column] < 0)
    gain = jnp.where(found & closed, low - reach, 0)
    root = found & (jnp.arange(len(s.u)) == s.root)
    u = s.u + jnp.where(s.query >= 0, gain[s.query], 0) + jnp.where(root, low, 0)
    return s._replace(
        u=u,
        v=s.v - gain,
        reach=reach,
        back=back,
        closed=closed,
        row=jnp.where(growing & ~found, s.target[column], s.row),
        low=jnp.where(growing, low, s.low),
        sink=jnp.where(found, column, s.sink),
    )


def _flip(s: _Search) -> _Search:
    """The row before `sink` takes it, and what it had is the next sink (-1 for the root)."""
    flipping = s.sink >= 0
    row = s.back[s.sink]
    taken = flipping & (jnp.arange(len(s.target)) == s.sink)
    changed = flipping & (jnp.arange(len(s.query)) == row)
    return s._replace(
        target=jnp.where(taken, row, s.target),
        query=jnp.where(changed, s.sink, s.query),
        sink=jnp.where(flipping, s.query[row], -1),
    )
