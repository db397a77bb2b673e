"""Proposal pickles of other content than MIST's and OICR's: right, or one line with the image."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hostile_pickles import REFUSED

from bridge.proposals.official_pickles import read_official
from bridge.released_pickles import main
from weaksam_jax.cli import entry_point
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.errors import BadInput

BOXES = np.asarray([[0, 0, 9, 9], [5, 6, 7, 8]], np.uint16)
OURS = [[0, 0, 10, 10], [5, 6, 8, 9]]
IDS = [11, 22]


@pytest.fixture
def split():
    records = [
        TagRecord(image_id, f"{image_id}.jpg", Path(f"{image_id}.jpg"), 40, 30, (0,))
        for image_id in IDS
    ]
    return TagSplit("SET", "train", ("cat",), (1,), records=tuple(records))


def read(tmp_path, split, content):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content, 4))
    return [boxes.tolist() for boxes in read_official(path, split)]


def mist(boxes, scores=None, ids=IDS):
    scores = [np.ones(len(one)) for one in boxes] if scores is None else scores
    return {"boxes": boxes, "scores": scores, "indexes": ids}


FORMS = {
    "array": BOXES,
    "float64": BOXES.astype(float),
    "float16": BOXES.astype(np.float16),
    "int64, Fortran order": np.asfortranarray(BOXES.astype(np.int64)),
    "big-endian": BOXES.astype(">i4"),
    "lists": BOXES.tolist(),
    "tuples": tuple(map(tuple, BOXES.tolist())),
    "rows": list(BOXES),
    "lists of scalars": [[np.float32(x) for x in row] for row in BOXES],
    "flipped part": BOXES[::-1][::-1],
}


@pytest.mark.parametrize("form", FORMS)
def test_boxes_in_every_form_of_numbers(tmp_path, split, form):
    assert read(tmp_path, split, [FORMS[form], np.zeros((0, 4))]) == [OURS, []]
    content = mist([FORMS[form], FORMS[form]], [np.ones((2, 1)), [1, 1]])
    assert read(tmp_path, split, content) == [OURS, OURS]


def test_none_one_and_all_alike(tmp_path, split):
    for nothing in ([], (), np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5)), np.zeros((1, 4))):
        assert read(tmp_path, split, [nothing, BOXES]) == [[], OURS]
    for one in (BOXES[0], BOXES[0].tolist(), BOXES[:1]):
        assert read(tmp_path, split, [one, []]) == [OURS[:1], []]
    stacked = mist(np.stack([BOXES, BOXES]), np.ones((2, 2)), np.asarray(IDS, np.uint64))
    assert read(tmp_path, split, stacked) == [OURS, OURS]
    without = {"boxes": [BOXES, BOXES], "indexes": np.asarray(IDS, float)}
    assert read(tmp_path, split, without) == [OURS, OURS]


OTHERS = {
    "None": None,
    "a dict": {"boxes": BOXES},
    "a number": 5,
    "a fraction": 1.5,
    "a text": "boxes",
    "bytes": b"boxes",
    "truth": np.ones((2, 4), bool),
    "a scalar": np.float64(3),
    "no dimension": np.array(3.0),
    "two by three": np.zeros((2, 3)),
    "eight in a row": np.ones(8),
    "three dimensions": np.ones((1, 2, 4)),
    "rows of three": [[1, 2, 3], [1, 2, 3]],
    "rows that differ": [[1, 2, 3, 4], [1, 2, 3]],
    "rows of texts": [["1", "2", "3", "4"]],
    "rows of None": [[1, 2, None, 4]],
    "rows of rows": [[[1, 2, 3, 4]]],
    "a row too many": [[1, 2, 3, 4], 5],
}
NOT_OF_AN_IMAGE = {
    "NaN": np.asarray([[1, 2, np.nan, 4]]),
    "NaN in a list": [[1, 2, float("nan"), 4]],
    "infinity": np.asarray([[1, 2, np.inf, 4]]),
    "minus infinity": np.asarray([[-np.inf, 2, 3, 4]]),
    "inverted": np.asarray([[9, 9, 3, 20]]),
    "far outside": np.asarray([[0, 0, 60, 20]]),
    "huge": [[0, 0, 10**30, 10]],
    "largest": np.full((1, 4), 2**64 - 1, np.uint64),
}


@pytest.mark.parametrize("what", [*OTHERS, *NOT_OF_AN_IMAGE])
def test_what_are_no_boxes_names_the_image(tmp_path, split, what):
    entry = OTHERS.get(what, NOT_OF_AN_IMAGE.get(what))
    told = (
        "are no numbers" if what in OTHERS else "(are inverted or not finite|reach beyond its 40)"
    )
    for content in ([BOXES, entry], mist([BOXES, entry], [[1, 1], [1]])):
        with pytest.raises(BadInput, match=rf"a\.pkl: boxes of image 22 \(22\.jpg\) {told}"):
            read(tmp_path, split, content)


FIELDS = [
    (mist([BOXES, BOXES], [np.ones(2), np.ones(3)]), r"scores of image 22 \(22\.jpg\) are 3 for 2"),
    (mist([BOXES, BOXES], [np.ones(2), 5]), r"scores of image 22 \(22\.jpg\) are int for 2 boxes"),
    (mist([BOXES, BOXES], [np.ones(2)]), "has 1 entries of scores and 2 indexes"),
    (mist([BOXES, BOXES], 7), "scores is a int, no list"),
    (mist([BOXES], [[1, 1]]), "has 1 entries of boxes and 2 indexes"),
    (mist([BOXES, BOXES], ids=[11, 11]), "has image 11 twice in its indexes"),
    (mist([BOXES, BOXES], ids=[11, 33]), r"has no image 22 \(1 images are missing\)"),
    (mist([BOXES, BOXES], ids=[11, "22"]), "entry 1 of indexes is no whole number"),
    (mist([BOXES, BOXES], ids=[11, 22.5]), "entry 1 of indexes is no whole number"),
    (mist([BOXES, BOXES], ids=np.asarray([11, 22.5])), "entry 1 of indexes is no whole number"),
    (mist([BOXES, BOXES], ids=np.asarray([11, np.inf])), "entry 1 of indexes is no whole number"),
    (mist([BOXES, BOXES], ids=[[11], [22]]), "entry 0 of indexes is no whole number"),
    (mist([BOXES, BOXES], ids=[True, 22]), "entry 0 of indexes is no whole number"),
    (mist([BOXES, BOXES], ids=None), "indexes is nothing, no list"),
    (mist({11: BOXES}, []), "boxes is a dict, no list"),
    (mist(np.float64(3), []), "boxes is a float64, no list"),
    ({}, "lacks boxes"),
    ([BOXES], "lists 1 images, SET/train has 2"),
    (None, "holds a NoneType"),
    (5, "holds a int"),
    ((BOXES, BOXES), "holds a tuple"),
    ("boxes", "holds a str"),
]


@pytest.mark.parametrize(("content", "told"), FIELDS)
def test_fields_that_do_not_fit_are_named(tmp_path, split, content, told):
    with pytest.raises(BadInput, match=rf"a\.pkl: .*{told}") as caught:
        read(tmp_path, split, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["alignment", "huge item"])
def test_the_state_of_a_dtype_ends_in_one_line(tmp_path, capsys, what):
    """The command of the report, on a data set of two training images."""
    from PIL import Image

    root = tmp_path / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name in ("000001", "000002"):
        Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{name}.jpg")
        tag = "<annotation><object><name>cat</name></object></annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(tag)
    for name in ("train", "trainval", "test"):
        (root / "ImageSets/Main" / f"{name}.txt").write_text("000001\n000002\n")
    path = tmp_path / "a.pkl"
    path.write_bytes(REFUSED[what])
    flags = ["--data", str(root), "--split", "train", "--store", str(tmp_path / "s")]
    assert entry_point(main, ["read", *flags, "--pickle", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: is no readable pickle of arrays (it ")
    assert not (tmp_path / "s").exists()
