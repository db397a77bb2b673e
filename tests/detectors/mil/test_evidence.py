"""Evidence of clue maps against sums over fine pixels, and its properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weaksam_jax.data.records import TagRecord
from weaksam_jax.data.store import proposal_path, write_stored
from weaksam_jax.detectors.mil.evidence import box_cosine, clue_evidence
from weaksam_jax.errors import BadInput


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_cosine_equals_the_one_of_pixel_masks(seed, height, width):
    rng = np.random.default_rng(seed)
    maps = rng.random((2, height, width)) * (rng.random((2, height, width)) < 0.7)
    corners = rng.integers(0, 4 * np.array([width, height]), (6, 2))
    sides = 1 + rng.integers(0, 4 * np.array([width, height]) - corners)
    boxes = np.concatenate([corners, corners + sides], 1)  # in quarters of a cell
    found = box_cosine(maps, boxes / 4)
    fine = maps.repeat(4, 1).repeat(4, 2)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        mask = np.zeros(fine.shape[1:])
        mask[y1:y2, x1:x2] = 1
        for j, one in enumerate(fine):
            norm = np.linalg.norm(one) * np.linalg.norm(mask)
            assert found[i, j] == pytest.approx((one * mask).sum() / norm if norm else 0, abs=1e-5)


def test_the_box_of_a_blob_beats_its_part_and_a_loose_box():
    maps = np.zeros((1, 20, 20))
    maps[0, 4:12, 6:16] = 1
    boxes = np.array([[6, 4, 16, 12], [6, 4, 11, 12], [2, 0, 20, 16], [0, 13, 5, 20], [3, 3, 3, 3]])
    whole, part, loose, beside, empty = box_cosine(maps, boxes)[:, 0]
    assert whole == pytest.approx(1) and part < 0.75 and loose < 0.75
    assert beside == 0 and empty == 0


def test_stored_maps_are_found_by_class_and_scaled(tmp_path):
    record = TagRecord(7, "7.jpg", tmp_path / "7.jpg", 200, 100, (1, 3))
    maps = np.zeros((2, 10, 20), np.float16)
    maps[0, :5], maps[1, :, 15:] = 1, 0.5
    path = proposal_path(tmp_path, "train", 7)
    arrays = {"fine": maps, "class_ids": np.array([1, 3], np.int32)}
    write_stored(tmp_path, "train", 7, arrays=arrays, metadata={})
    boxes = np.array([[0, 0, 200, 50], [150, 0, 200, 100]], np.float32)
    found = clue_evidence(tmp_path, "train", record, boxes, 5)
    assert found.shape == (2, 5) and found.dtype == np.float32
    np.testing.assert_allclose(
        found[:, [1, 3]], [[1, 0.25**0.5 / 2**0.5], [0.5 * 0.5**0.5, 1]], rtol=0.01, atol=0.15
    )
    assert not found[:, [0, 2, 4]].any()
    for name, strange in (
        ("fine", maps[:1]),
        ("fine", maps.astype(np.float32)),
        ("fine", np.full_like(maps, np.nan)),
        ("fine", maps[:, :0]),
        ("class_ids", np.array([1, 5], np.int32)),
        ("class_ids", np.array([3, 1], np.int32)),
        ("class_ids", np.array([1, 3])),
    ):
        write_stored(tmp_path, "train", 7, arrays=arrays | {name: strange}, metadata={})
        with pytest.raises(BadInput, match=rf"7\.safetensors: has .*{name}"):
            clue_evidence(tmp_path, "train", record, boxes, 5)
    path.unlink()
    with pytest.raises(BadInput, match=r"7\.safetensors.*clue"):
        clue_evidence(tmp_path, "train", record, boxes, 5)
