"""Denoising queries: which objects they hold, how far they are moved, who sees whom."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weaksam_jax.detectors.dino.config import DenoisingConfig
from weaksam_jax.detectors.dino.denoising import (
    Noise,
    denoise,
    move_boxes,
    no_slots,
    slot_count,
    visible_queries,
)

CLASSES, OBJECTS = 7, 5


def batch_of(valid):
    """Objects of images of 40 x 60, where `valid` `[B, G]` says so."""
    valid = np.asarray(valid, bool)
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 20, (*valid.shape, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 20, corner.shape)], -1)
    boxes = np.where(valid[..., None], boxes, 0).astype(np.float32)
    labels = np.where(valid, rng.integers(0, CLASSES, valid.shape), 0).astype(np.int32)
    size = np.tile(np.float32([[40, 60]]), (len(valid), 1))
    return {"boxes": boxes, "labels": labels, "valid": valid, "size": size}


def keys(seed, batch):
    return jax.random.split(jax.random.key(seed), len(batch["valid"]))


def groups_of(valid, per_group, budget):
    """The (object, positive) pairs of an image, group by group, written out."""
    objects = np.flatnonzero(valid)
    groups = max(1, budget // per_group) if per_group else 0
    rows = []
    for group in range(groups):
        for positive in (True, False):
            for rank in range(per_group):
                own = objects[rank] if rank < len(objects) else None
                rows.append((group, own, positive and own is not None))
    return rows


masks = st.lists(
    st.lists(st.booleans(), min_size=OBJECTS, max_size=OBJECTS), min_size=2, max_size=2
)


@settings(max_examples=40)
@given(
    valid=masks, budget=st.sampled_from([1, 5, 12]), grouping=st.sampled_from(["image", "batch"])
)
def test_groups_hold_every_object_of_an_image_twice(valid, budget, grouping):
    config = DenoisingConfig(queries=budget, grouping=grouping)
    batch = batch_of(valid)
    slots = denoise(batch, keys(1, batch), classes=CLASSES, config=config)
    total = slot_count(OBJECTS, config)
    assert total == 2 * max(budget, OBJECTS) and slots.labels.shape == (len(valid), total)
    most = max(map(sum, valid))
    for image, own in enumerate(batch["valid"]):
        per_group = most if grouping == "batch" else own.sum()
        rows = groups_of(own, per_group, budget)
        assert len(rows) <= total
        targets = jax.tree.map(lambda x, image=image: np.asarray(x[image]), slots.targets)
        assert targets.valid.tolist() == [True] * len(rows) + [False] * (total - len(rows))
        filled = np.asarray(slots.filled[image])
        assert filled.tolist()[: len(rows)] == [one is not None for _, one, _ in rows]
        assert not filled[len(rows) :].any() and not targets.positive[len(rows) :].any()
        assert targets.index[filled].tolist() == [one for _, one, _ in rows if one is not None]
        assert targets.positive[: len(rows)].tolist() == [positive for *_, positive in rows]
        assert slots.group[image][: len(rows)].tolist() == [group for group, *_ in rows]
        np.testing.assert_array_equal(slots.boxes[image][~filled], 0.5)


def test_images_without_objects_have_no_slots():
    batch = batch_of(np.zeros((2, OBJECTS)))
    for grouping in ("image", "batch"):
        config = DenoisingConfig(queries=4, grouping=grouping)
        slots = denoise(batch, keys(0, batch), classes=CLASSES, config=config)
        assert not slots.targets.valid.any() and np.isfinite(slots.boxes).all()
        seen = np.asarray(visible_queries(slots, 3))
        assert not seen[:, :, :10].any() and seen[:, :, 10:].all()
    assert no_slots(2).boxes.shape == (2, 0, 4)


def test_who_sees_whom():
    batch = batch_of([[1, 0, 1, 0, 0], [1, 1, 1, 1, 1]])
    config = DenoisingConfig(queries=4)
    slots = denoise(batch, keys(2, batch), classes=CLASSES, config=config)
    seen = np.asarray(visible_queries(slots, 3))
    assert seen.shape == (2, 13, 13)
    assert seen[:, :, 10:].all(), "everyone sees the matching queries"
    assert not seen[:, 10:, :10].any(), "which see no denoising query"
    first = np.kron(np.eye(2), np.ones((4, 4))).astype(bool)  # two groups of two objects
    np.testing.assert_array_equal(seen[0, :8, :8], first)
    assert not seen[0, :, 8:10].any() and seen[1, :10, :10].all()


def test_boxes_move_as_far_as_they_may():
    """Positives: corners by less than half a side; negatives: between half and a whole one."""
    rng = np.random.default_rng(3)
    boxes = np.tile(np.float32([0.4, 0.45, 0.6, 0.55]), (4000, 1))
    noise = Noise(
        np.zeros(4000),
        np.zeros(4000, int),
        negative=rng.random((4000, 4)) < 0.5,
        part=rng.random((4000, 4)).astype(np.float32),
    )
    positive = np.arange(4000) < 2000
    moved = np.asarray(move_boxes(jnp.asarray(boxes), noise, jnp.asarray(positive)))
    centre, half = moved[:, :2], moved[:, 2:] / 2
    corners = np.concatenate([centre - half, centre + half], 1)
    sides = np.float32([0.2, 0.1, 0.2, 0.1])
    # Where corners crossed the sides are 0.001, and the corners are not those that were drawn.
    whole = (moved[:, 2:] > 0.0011).all(1)
    apart = np.abs(corners - boxes) / sides
    assert whole[positive].all() and 0.2 < whole[~positive].mean() < 1
    assert apart[positive].max() < 0.5 + 1e-3 and apart[positive].max() > 0.49
    negative = ~positive & whole
    assert apart[negative].min() > 0.5 - 1e-3 and apart[negative].max() < 1 + 1e-3
    assert ((corners > boxes) == ~noise.negative)[whole].mean() > 0.999


def test_labels_are_replaced_at_half_of_the_noise():
    batch = batch_of(np.ones((8, OBJECTS)))
    config = DenoisingConfig(queries=1000, label_noise=0.6)
    slots = denoise(batch, keys(4, batch), classes=CLASSES, config=config)
    true = np.take_along_axis(batch["labels"], np.asarray(slots.targets.index), 1)
    changed = (np.asarray(slots.labels) != true).mean()
    assert abs(changed - 0.3 * (1 - 1 / CLASSES)) < 0.02
    assert set(np.unique(slots.labels)) <= set(range(CLASSES))
    quiet = denoise(batch, keys(4, batch), classes=CLASSES, config=replace(config, label_noise=0.0))
    np.testing.assert_array_equal(quiet.labels, true)


@pytest.mark.parametrize("image", [0, 1])
def test_the_noise_of_an_image_is_its_own(image):
    """Its key decides, and not which images stand beside it."""
    batch = batch_of(np.ones((2, OBJECTS)))
    config = DenoisingConfig(queries=8)
    both = denoise(batch, keys(5, batch), classes=CLASSES, config=config)
    assert not np.array_equal(both.boxes[0], both.boxes[1])
    batch = {name: value.copy() for name, value in batch.items()}
    for value in batch.values():
        value[1 - image] = value[image]
    again = denoise(batch, keys(5, batch), classes=CLASSES, config=config)
    np.testing.assert_array_equal(both.boxes[image], again.boxes[image])
