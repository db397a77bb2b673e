"""Images of rectangles, for the tests of this folder."""

import pytest
from small_faster_rcnn import write_rectangles


@pytest.fixture(scope="session")
def rectangles(tmp_path_factory):
    """(split, pseudo boxes)."""
    return write_rectangles(tmp_path_factory.mktemp("rectangles"))
