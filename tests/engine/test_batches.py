"""Batches as a pure function of (seed, number)."""

import numpy as np
import pytest

from weaksam_jax.data.batches import make_batches
from weaksam_jax.errors import BadInput


def sample(index, padded, rng):
    return {
        "index": np.int64(index),
        "noise": rng.random(3),
        "padded": np.zeros(padded),
    }


BUCKETS = [(4, 6)] * 9 + [(6, 4)] * 5


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def equal(a, b):
    return all(
        all(np.array_equal(x[name], y[name]) for name in x) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("threads", [0, 2])
def test_state_round_trip_is_exact(threads):
    iterator = make_batches(sample, BUCKETS, 3, seed=1, threads=threads)
    take(iterator, 5)
    state = iterator.get_state()
    rest = take(iterator, 7)
    again = make_batches(sample, BUCKETS, 3, seed=1, threads=threads)
    again.set_state(state)
    assert equal(take(again, 7), rest)


def test_threads_change_nothing_and_the_seed_does():
    inline = take(make_batches(sample, BUCKETS, 3, seed=1, threads=0), 8)
    assert equal(take(make_batches(sample, BUCKETS, 3, seed=1), 8), inline)
    assert not equal(take(make_batches(sample, BUCKETS, 3, seed=2), 8), inline)


def test_an_epoch_shows_each_sample_at_most_once_and_never_mixes_buckets():
    iterator = make_batches(sample, BUCKETS, 3, seed=0)
    for _ in range(4):  # 9 / 3 + round(5 / 3) batches per epoch
        epoch = take(iterator, 5)
        first = np.concatenate([b["index"] for b in epoch if b["index"][0] < 9])
        assert sorted(first) == list(range(9))
        for batch in epoch:
            assert len({BUCKETS[i] for i in batch["index"]}) == 1
            assert batch["padded"].shape[1:] == BUCKETS[batch["index"][0]]


def test_processes_share_a_batch():
    whole = take(make_batches(sample, BUCKETS, 4, seed=3), 6)
    halves = [take(make_batches(sample, BUCKETS, 4, seed=3, process=(p, 2)), 6) for p in (0, 1)]
    for all_of_it, left, right in zip(whole, *halves, strict=True):
        for name in all_of_it:
            np.testing.assert_array_equal(
                np.concatenate([left[name], right[name]]), all_of_it[name]
            )


def test_unequal_shares_are_bad_input():
    with pytest.raises(BadInput, match="3 images do not divide among 2 processes"):
        make_batches(sample, BUCKETS, 3, seed=0, process=(0, 2))


def test_a_position_is_the_same_in_every_process():
    """So that a checkpoint of two processes goes on in one, or in three."""
    half = make_batches(sample, BUCKETS, 6, seed=3, process=(1, 2))
    take(half, 4)
    whole = make_batches(sample, BUCKETS, 6, seed=3)
    whole.set_state(half.get_state())
    rest = next(whole)
    np.testing.assert_array_equal(rest["noise"][3:], next(half)["noise"])
