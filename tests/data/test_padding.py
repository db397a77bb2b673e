"""Boxes follow their image into the padded size, and are padded or cut to their number."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weaksam_jax.data.padding import pad_boxes, resize_and_pad


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
