"""Batches as a pure function of (seed, number), and boxes that follow their image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weaksam_jax.data.batches import make_batches
from weaksam_jax.data.padding import pad_boxes, resize_and_pad
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


@given(
    st.integers(24, 60),
    st.integers(24, 60),
    st.booleans(),
    st.floats(0.5, 1.5),
)
def test_boxes_follow_the_image(height, width, flip, scale):
    """A bright rectangle is found where its box says, within the rounding of the resize."""
    image = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = width // 4, height // 4, width // 4 + width // 2, height // 4 + height // 2
    image[y1:y2, x1:x2] = 255
    box = np.asarray([[x1, y1, x2, y2]], np.float32)
    out, boxes, size = resize_and_pad(image, box, (64, 64), scale=scale, flip=flip)
    assert out.shape == (64, 64, 3) and not out[size[0] :].any() and not out[:, size[1] :].any()
    rows, columns = (
        np.flatnonzero(out[..., 0].max(1) > 127),
        np.flatnonzero(out[..., 0].max(0) > 127),
    )
    seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert np.abs(boxes[0] - seen).max() <= 1.5


def test_boxes_are_padded_or_cut_to_their_number():
    padded, valid = pad_boxes(np.ones((3, 4), np.float32), 5)
    assert padded.shape == (5, 4) and valid.tolist() == [True] * 3 + [False] * 2
    assert pad_boxes(np.ones((7, 4)), 5)[1].all()
