"""Anchors against torchvision's generator and a loop."""

import bridge.runtime.torchvision_ops  # noqa: F401

# isort: split
import numpy as np
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from weaksam_jax.ops.anchors import cell_anchors, level_anchors, pyramid_anchors


def test_cells_have_the_stated_areas_and_ratios():
    cells = cell_anchors((32, 64), (0.5, 1.0, 2.0))
    assert cells.shape == (6, 4) and cells.dtype == np.float32
    width, height = cells[:, 2] - cells[:, 0], cells[:, 3] - cells[:, 1]
    np.testing.assert_allclose(width * height, np.repeat([32.0**2, 64.0**2], 3), rtol=1e-5)
    np.testing.assert_allclose(height / width, [0.5, 1, 2, 0.5, 1, 2], rtol=1e-5)
    np.testing.assert_allclose(cells[:, :2], -cells[:, 2:])


def test_order_and_centres_equal_a_loop():
    cells = cell_anchors((16,), (1.0, 2.0))
    expected = []
    for row in range(3):
        for column in range(4):
            for cell in cells:
                shift = [(column + 0.5) * 8, (row + 0.5) * 8] * 2
                expected.append(cell + shift)
    np.testing.assert_allclose(level_anchors(3, 4, 8, cells, offset=0.5), expected, rtol=1e-6)


def test_pyramid_equals_torchvision_but_for_its_rounding():
    sizes, ratios = ((32,), (64,), (128,)), (0.5, 1.0, 2.0)
    shapes, strides = ((24, 20), (12, 10), (6, 5)), (8, 16, 32)
    generator = AnchorGenerator(sizes, (ratios,) * 3)
    # torchvision rounds the anchors of a cell to whole pixels; detectron2 and we do not.
    generator.cell_anchors = [torch.as_tensor(cell_anchors(size, ratios)) for size in sizes]
    generator.set_cell_anchors = lambda dtype, device: None
    images = ImageList(torch.zeros(1, 3, 192, 160), [(192, 160)])
    expected = generator(images, [torch.zeros(1, 8, *shape) for shape in shapes])[0].numpy()
    ours = np.concatenate(pyramid_anchors(shapes, strides, sizes, ratios))
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    rounded = torch.cat([AnchorGenerator((size,), (ratios,)).cell_anchors[0] for size in sizes])
    cells = np.concatenate([cell_anchors(size, ratios) for size in sizes])
    np.testing.assert_allclose(cells, rounded, atol=0.5)
    cells = np.concatenate([cell_anchors(size, ratios, rounded=True) for size in sizes])
    np.testing.assert_array_equal(cells, rounded)
