"""Query drop, equations 3-4 and appendix C of the paper: queries whose loss is so large that their
pseudo label is probably wrong are not trained on.

The masks are constants: no gradient flows through them. Losses are `[..., N]`: N queries are ranked
among themselves, those of other leading entries (layers) on their own. axis_name: the mesh axis
over whose devices the queries are ranked together.
"""

import jax
import jax.numpy as jnp


def query_drop(
    cls_loss: jax.Array, matched: jax.Array, percentile: float = 90, axis_name: str | None = None
) -> jax.Array:
    """The drop signal of equation 3: keep bool `[..., N]`, False for matched queries of largest
    loss.

    cls_loss: float `[..., N]`, unweighted classification losses; matched: bool `[..., N]`, the
    queries ranked among themselves (appendix C: those with an object); all others are kept. Kept is
    what is <= the value at the percentile, taken as the smallest loss with at least `percentile` %
    of the matched ones at or below it: floor((100 - percentile) % of n) of n distinct losses go,
    but for the smallest, and none when n is small (fewer than 10 at 90).
    """
    cls_loss = jax.lax.stop_gradient(jnp.asarray(cls_loss))
    matched = jnp.asarray(matched)
    if not matched.shape[-1]:
        return ~matched
    rising = jnp.sort(_of_all(jnp.where(matched, -cls_loss, jnp.inf), axis_name), axis=-1)
    count = _total(jnp.sum(matched, axis=-1, keepdims=True, dtype=jnp.int32), axis_name)
    dropped = jnp.minimum(_floor_share(count, percentile), jnp.maximum(count - 1, 0))
    place = jnp.minimum(dropped, rising.shape[-1] - 1)
    limit = -jnp.take_along_axis(rising, place, axis=-1)
    return ~matched | (cls_loss <= limit) | (dropped == 0)


def _floor_share(count: jax.Array, percentile: float) -> jax.Array:
    """floor((100 - percentile) % of count), int32, in whole hundredths of a percent: in float32
    (1 - 0.9) * 10 is below 1."""
    hundredths = 10_000 - round(100 * percentile)
    # In two parts, as the product may be beyond int32.
    whole, rest = count // 10_000, count % 10_000
    return whole * hundredths + rest * hundredths // 10_000


def normalise(loss: jax.Array, group: jax.Array, axis_name: str | None = None) -> jax.Array:
    """The losses `[..., N]` of a group (bool `[..., N]`) moved and scaled to 0..1; all 0 where the
    group has one value. What is outside of the group has no meaning."""
    low = jnp.min(jnp.where(group, loss, jnp.inf), axis=-1, keepdims=True, initial=jnp.inf)
    high = jnp.max(jnp.where(group, loss, -jnp.inf), axis=-1, keepdims=True, initial=-jnp.inf)
    if axis_name is not None:
        low, high = jax.lax.pmin(low, axis_name), jax.lax.pmax(high, axis_name)
    span = high - low
    return jnp.where(span > 0, (loss - low) / jnp.where(span > 0, span, 1), 0)


def drop_queries(
    cls_loss: jax.Array,
    positive: jax.Array,
    valid: jax.Array,
    *,
    percentile: float = 90,
    background: bool = False,
    axis_name: str | None = None,
) -> jax.Array:
    """Keep bool `[..., N]` by `query_drop`, True also where not valid.

    cls_loss: unweighted classification losses; positive: bool, queries with an object (things).
    background=False ranks the things alone; True ranks things and background together after
    `normalise` of each, since a background query's loss is far lower (appendix C, table 10).
    """
    cls_loss = jax.lax.stop_gradient(cls_loss)
    things = positive & valid
    if not background:
        return query_drop(cls_loss, things, percentile, axis_name=axis_name)
    nothing = valid & ~positive
    of_things, of_nothing = (normalise(cls_loss, group, axis_name) for group in (things, nothing))
    ranks = jnp.where(things, of_things, of_nothing)
    return query_drop(ranks, valid, percentile, axis_name=axis_name)


def _of_all(values: jax.Array, axis_name: str | None) -> jax.Array:
    """`[..., N]` of every device behind one another."""
    if axis_name is None:
        return values
    return jax.lax.all_gather(values, axis_name, axis=values.ndim - 1, tiled=True)


def _total(values: jax.Array, axis_name: str | None) -> jax.Array:
    return values if axis_name is None else jax.lax.psum(values, axis_name)
