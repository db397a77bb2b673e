"""Proposals of other settings from stored rows against running SAM again with those settings."""

from dataclasses import fields, replace

import numpy as np
import pytest
from small_sam import HEIGHT, WIDTH
from stores import stored_proposals

from bridge.clues.interface import Clues, minmax
from bridge.proposals.prompts import PromptConfig, prompt_points
from bridge.proposals.sam_proposals import propose
from bridge.proposals.selection import ProposalConfig, rederive
from weaksam_jax.data.store import SOURCES, write_proposals
from weaksam_jax.errors import BadInput

# The paper's Table 4: prompt sources added one after the other.
TABLE_4 = (
    ("grid",),
    ("grid", "fine"),
    ("grid", "fine", "coarse"),
    ("grid", "fine", "coarse", "cross"),
)
PROMPTS = PromptConfig(
    kernel_coarse=33, kernel_fine=33, kernel_cross=65, cross_divisor=2, grid_side=8
)
# A random SAM is stable only at a small offset.
BASE = ProposalConfig(t_iou=7.2, t_stab=0.05, stability_offset=0.2, chunk=16)
KEPT = replace(BASE, keep_decoded=True)


@pytest.fixture(scope="module")
def clues():
    rng = np.random.default_rng(5)
    maps = [minmax(rng.random((*lead, HEIGHT, WIDTH)) ** 9) for lead in ((2,), (2,), (8, 2))]
    return Clues(*maps, class_ids=np.asarray([1, 4]), class_logits=np.zeros(6, np.float32))


def prompts_of(clues, sources):
    return prompt_points(clues, replace(PROMPTS, sources=sources), HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def stored(sam, image, clues, tmp_path_factory):
    """All sources, every decoded mask kept, written and read back."""
    root = tmp_path_factory.mktemp("proposals")
    every = propose(sam, image, prompts_of(clues, TABLE_4[-1]), KEPT, image_id=12)
    write_proposals(root, "train", every, {})
    return stored_proposals(root, "train", 12)


def assert_same_bits(found, expected, but=()):
    """but: fields that may differ in the last bits."""
    for field in fields(expected):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if field.name in but:
            np.testing.assert_allclose(one, other, rtol=1e-5)
        elif isinstance(other, np.ndarray):
            assert one.dtype == other.dtype and one.tobytes() == other.tobytes(), field.name
        elif field.name not in ("masks", "decoded"):
            assert one == other, field.name


@pytest.mark.parametrize("sources", TABLE_4, ids="+".join)
def test_rows_of_table_4(stored, sam, image, clues, sources):
    direct = propose(sam, image, prompts_of(clues, sources), BASE, image_id=12)
    assert set(direct.source) == {SOURCES.index(one) for one in sources}
    # Fewer prompts are other batches, and a matrix product of another size may round otherwise.
    assert_same_bits(rederive(stored, BASE, sources), direct, but=("predicted_iou",))


CHANGES = {
    "grid NMS": {"grid_nms": 0.7},
    "no cross NMS": {"cross_nms": None},
    "cross NMS": {"cross_nms": 0.5},
    "looser": {"t_iou": 6.0, "t_stab": 0.0},
    "stricter": {"t_iou": 9.0, "t_stab": 0.3, "grid_nms": 0.5},
    "third token alone": {"peak_tokens": (2,)},
    "three of three tokens": {"peak_tokens": (0, 1, 2)},
    "first token": {"peak_tokens": (0,), "cross_nms": 0.6},
    "measures outside the paper": {"dedupe_nms": 0.8, "max_boxes": 20, "min_side": 10},
    "nothing passes": {"t_iou": 1000.0},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_other_settings(stored, sam, image, clues, change):
    config = replace(BASE, **change)
    direct = propose(sam, image, prompts_of(clues, TABLE_4[-1]), config, image_id=12)
    assert len(direct) != len(stored)  # the change matters
    assert_same_bits(rederive(stored, config), direct)


def test_keeping_rows_changes_no_proposal(stored, sam, image, clues):
    prompts = prompts_of(clues, TABLE_4[-1])
    plain = propose(sam, image, prompts, BASE, image_id=12)
    assert plain.decoded is None
    assert_same_bits(stored, plain)
    assert stored.masks == plain.masks
    rows, count = stored.decoded, len(prompts.grid) + len(prompts.points) + len(prompts.groups)
    assert len(rows.boxes) == 3 * count and rows.stability_offset == 0.2
    assert rows.boxes.dtype == np.uint16
    np.testing.assert_array_equal(rows.token.reshape(-1, 3), np.tile([1, 2, 3], (count, 1)))
    without = propose(sam, image, prompts, replace(KEPT, with_masks=False), image_id=12)
    assert without.masks is None
    for name in ("boxes", "predicted_iou", "stability", "prompt"):
        assert getattr(without.decoded, name).tobytes() == getattr(rows, name).tobytes()


def test_what_cannot_be_rederived_is_refused(stored, sam, image, clues):
    with pytest.raises(BadInput, match=r"image 12.*offset 0\.2, not 1\.0"):
        rederive(stored, replace(BASE, stability_offset=1.0))
    with pytest.raises(BadInput, match="keep_decoded"):
        rederive(replace(stored, decoded=None), BASE)
