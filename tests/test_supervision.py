"""What weights have seen: words, files, permissions."""

import numpy as np
import pytest

from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_arrays
from weaksam_jax.supervision import (
    check_allowed,
    ledger_row,
    parse_kinds,
    read_stated,
    saw,
    stated,
    trained,
)

ARRAYS = {"a": np.ones(3, np.float32)}


def test_kinds_stand_once_in_a_fixed_order():
    assert saw(["boxes", "tags", "tags", "none"]).text == "tags, boxes"
    assert saw(["none"]).metadata() == {"supervision": "none", "source": ""}
    assert parse_kinds(" masks,tags ", "x") == ("tags", "masks")
    for text, message in (("bxes", "bxes is no kind of supervision; did you mean boxes?"),
                          (" , ", "names no supervision; give some of none, tags")):  # fmt: skip
        with pytest.raises(BadInput, match=message):
            parse_kinds(text, "--supervision")


def test_training_adds_to_what_its_start_has_seen():
    start = saw(["boxes"], "COCO")
    found = trained(["tags"], "tags of VOC2007 trainval", start)
    assert found.kinds == ("tags", "boxes")
    assert found.source == "tags of VOC2007 trainval, from: COCO"
    assert trained(["tags"], "tags", None) == saw(["tags"], "tags")
    assert len(trained(["tags"], "x" * 400, start).source) == 300


def test_a_file_says_what_it_has_seen(tmp_path):
    path = tmp_path / "w.safetensors"
    write_arrays(path, ARRAYS, saw(["masks", "tags"], "mine").metadata())
    assert read_stated(path) == saw(["tags", "masks"], "mine")
    write_arrays(path, ARRAYS, {"backbone": "lite0"})
    assert read_stated(path).kinds == ("unknown",)
    write_arrays(path, ARRAYS, {"supervision": "everything"})
    with pytest.raises(BadInput, match=r"w\.safetensors \(metadata supervision\): everything is"):
        read_stated(path)
    with pytest.raises(BadInput, match="does not exist"):
        read_stated(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("kinds", [["none"], ["tags"], ["text"], ["tags", "text"]])
def test_tags_and_text_need_no_permission(kinds):
    assert check_allowed("w", saw(kinds), (), what="a stage") == ()


@pytest.mark.parametrize(
    ("kinds", "allowed", "message"),
    [
        (["boxes", "tags"], (), "w: has seen boxes, and X would start .*--allow-supervision boxes"),
        (["boxes", "masks"], ("boxes",), "has seen masks, .*--allow-supervision masks"),
        (["boxes"], ("unknown", "masks"), "has seen boxes, "),
        (["unknown"], ("boxes",), r"does not say .* bridge\.convert .*--allow-supervision unknown"),
    ],
)
def test_others_need_one_of_their_own(kinds, allowed, message):
    with pytest.raises(BadInput, match=message):
        check_allowed("w", saw(kinds), allowed, what="X")
    guarded = tuple(one for one in ("boxes", "masks", "unknown") if one in kinds)
    assert check_allowed("w", saw(kinds), guarded, what="X") == guarded


def test_a_row_says_what_was_allowed():
    row = ledger_row("f", saw(["tags"], "s"))
    assert row == {"file": "f", "supervision": "tags", "source": "s"}
    assert ledger_row("f", saw(["boxes"]), ("boxes",))["allowed"] == "boxes"


def test_what_is_stated_is_read_back():
    seen = saw(["tags", "boxes"], "a source")
    assert stated(seen.metadata(), "w") == seen
