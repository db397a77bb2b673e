"""Proposal pickles of the official code: nothing is run, boxes converted, images matched."""

import io
import os
import pickle
import pickletools
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from stores import stored_proposals

from bridge.proposals.official_pickles import export_official, import_official, read_official
from bridge.proposals.verify import verify_split
from bridge.released_pickles import main
from bridge.weights.machine import load
from bridge.weights.pickles import NUMPY, read_pickle
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags
from weaksam_jax.data.store import SOURCES, read_manifest, write_proposals
from weaksam_jax.errors import BadInput

# Not sorted, and of both VOC years; (width, height) differ, so that a wrong order shows.
NAMES = {"2008_000002": (60, 40), "000005": (40, 60), "000017": (50, 50)}
IDS = [2008000002, 5, 17]


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc") / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, size in NAMES.items():
        Image.new("RGB", size).save(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations" / f"{name}.xml").write_text(
            "<annotation><object><name>cat</name></object></annotation>"
        )
    for split in ("trainval", "test"):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(NAMES) + "\n")
    return root


@pytest.fixture(scope="module")
def split(voc):
    return open_tags(voc, "trainval")


def inclusive(seed=0):
    """Boxes [xmin, ymin, xmax, ymax], last pixel inside, of the three images; one has none."""
    rng, entries = np.random.default_rng(seed), []
    for (width, height), count in zip(NAMES.values(), (4, 6, 0), strict=True):
        x = np.sort(rng.integers(0, width, (count, 2)), axis=1)
        y = np.sort(rng.integers(0, height, (count, 2)), axis=1)
        entries.append(np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1))
    entries[0][0] = [0, 0, 59, 39]  # the whole image
    return entries


def mist(entries, dtype=np.uint16, ids=IDS):
    boxes = [entry.astype(dtype) for entry in entries]
    return {"boxes": boxes, "scores": [np.ones(len(b)) for b in boxes], "indexes": list(ids)}


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def ours(entries):
    """A plain re-implementation of the conversion."""
    return [[[x1, y1, x2 + 1, y2 + 1] for x1, y1, x2, y2 in entry.tolist()] for entry in entries]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_both_formats_are_read(split, tmp_path, protocol):
    entries = inclusive()
    shuffled = [2, 0, 1]
    contents = {
        "oicr": [entry.astype(np.float32) for entry in entries],
        "mist": mist([entries[i] for i in shuffled], ids=[IDS[i] for i in shuffled]),
        "coco": mist(entries, np.float32, ids=np.asarray(IDS)),
        "ordered": OrderedDict(mist(entries, ids=[np.int64(one) for one in IDS])),
    }
    for name, content in contents.items():
        found = read_official(write(tmp_path / f"{name}.pkl", content, protocol), split)
        assert [boxes.tolist() for boxes in found] == ours(entries), name
        assert all(boxes.dtype == np.float32 and boxes.shape[1:] == (4,) for boxes in found)


def with_names(data, new, old):
    """The text opcodes of a pickle with modules renamed, by hand."""
    for opcode, argument, place in reversed(list(pickletools.genops(data))):
        if opcode.name == "GLOBAL" and argument.startswith(new):
            data = data[: place + 1] + old.encode() + data[place + 1 + len(new) :]
    return data


def test_module_names_of_both_numpy_versions(split, tmp_path):
    entries = inclusive()
    new = pickle.dumps(mist(entries), protocol=2)
    old = with_names(new, "numpy._core", "numpy.core")
    assert b"numpy._core" in new and b"numpy._core" not in old and b"numpy.core" in old
    for name, data in (("new", new), ("old", old)):
        (tmp_path / name).write_bytes(data)
        assert [b.tolist() for b in read_official(tmp_path / name, split)] == ours(entries)


def test_empty_masks_go_and_what_barely_overhangs_is_cut(split, tmp_path):
    entries = [np.zeros((0, 4)), np.zeros((0,)), np.zeros((0, 4))]
    entries[0] = np.asarray([[0, 0, 0, 0], [10, 10, 60, 40], [5, 5, 5, 5]], np.float32)
    found = read_official(write(tmp_path / "a.pkl", entries), split)
    assert found[0].tolist() == [[10, 10, 60, 40], [5, 5, 6, 6]]
    assert found[1].shape == found[2].shape == (0, 4)


def test_a_store_goes_there_and_back(voc, split, tmp_path, capsys):
    entries = inclusive()
    store, path = tmp_path / "store", write(tmp_path / "a.pkl", mist(entries))
    common = ["--data", str(voc), "--split", "trainval", "--store", str(store)]
    assert entry_point(main, ["read", *common, "--pickle", str(path)]) == 0
    assert "10 boxes of trainval" in capsys.readouterr().out
    assert verify_split(store, "trainval", progress=False) == 3
    assert read_manifest(store, "trainval")["images"] == sorted(IDS)
    one = stored_proposals(store, "trainval", 2008000002)
    assert (one.width, one.height) == (60, 40) and one.masks is None
    assert set(one.source) == {SOURCES.index("imported")}
    for form in ("mist-voc", "mist-coco", "oicr"):
        out = tmp_path / f"{form}.pkl"
        assert entry_point(main, ["write", *common, "--pickle", str(out), "--format", form]) == 0
        content = read_pickle(out)
        if form == "oicr":
            boxes = content
        else:
            boxes = content["boxes"]
            assert content["indexes"] == IDS and all(type(i) is int for i in content["indexes"])
            tail = () if form == "mist-voc" else (1,)
            for scores, own in zip(content["scores"], boxes, strict=True):
                assert scores.shape == (len(own), *tail) and (scores == 1).all()
        kind = np.uint16 if form == "mist-voc" else np.float32
        for own, expected in zip(boxes, entries, strict=True):
            assert own.dtype == kind and own.shape == (len(expected), 4)
            np.testing.assert_array_equal(own, expected)
        import_official(out, split, tmp_path / "again", "grid")
        for image_id in IDS:
            again = stored_proposals(tmp_path / "again", "trainval", image_id)
            first = stored_proposals(store, "trainval", image_id)
            np.testing.assert_array_equal(again.boxes, first.boxes)
            assert set(again.source) <= {SOURCES.index("grid")}


def test_written_pickles_need_no_numpy_2(split, tmp_path):
    import_official(write(tmp_path / "a.pkl", mist(inclusive())), split, tmp_path / "s")
    export_official(tmp_path / "s", split, tmp_path / "b.pkl", "mist-coco")
    data = (tmp_path / "b.pkl").read_bytes()
    named = {argument for code, argument, _ in pickletools.genops(data) if code.name == "GLOBAL"}
    assert named == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
    assert data[1] == 3  # the protocol that old environments read


def test_fractions_are_truncated_as_in_the_official_code(split, tmp_path):
    import_official(write(tmp_path / "a.pkl", mist(inclusive())), split, tmp_path / "s")
    old = stored_proposals(tmp_path / "s", "trainval", 17)
    boxes = np.asarray([[3.9, 0, 20.7, 5.2], [4.0, 2, 4.5, 2.5]], np.float32)
    columns = dict.fromkeys(("predicted_iou", "stability"), np.zeros(2, np.float32))
    columns |= {"source": np.zeros(2, np.uint8), "token": np.zeros(2, np.uint8)}
    new = replace(old, boxes=boxes, prompt=np.full(2, -1, np.int32), **columns)
    write_proposals(tmp_path / "s", "trainval", new, {})
    export_official(tmp_path / "s", split, tmp_path / "b.pkl")
    assert read_pickle(tmp_path / "b.pkl")["boxes"][2].tolist() == [[3, 0, 19, 4], [4, 2, 4, 2]]


# Pickles that are more than arrays


class Runs:
    """Pickles into a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("place", ["alone", "in a dict", "in an array"])
def test_a_malicious_pickle_is_refused_and_does_not_run(split, tmp_path, protocol, place):
    mark = tmp_path / "ran"
    for call in (
        Runs(os.mkdir, str(mark)),
        Runs(eval, f"__import__('os').mkdir({str(mark)!r})"),
        Runs(getattr, np.ndarray, "tofile"),
        Runs(np.fromfile, str(tmp_path)),
        Runs(np.load, str(tmp_path)),
        Runs(bytearray, 3),
    ):
        content = {
            "alone": call,
            "in a dict": mist(inclusive()) | {"scores": [call]},
            "in an array": np.asarray([call, None], object),
        }[place]
        path = write(tmp_path / "a.pkl", content, protocol)
        with pytest.raises(BadInput, match="it asks for") as caught:
            read_pickle(path)
        assert caught.value.path == str(path) and not mark.exists()
    pickle.loads(pickle.dumps(Runs(os.mkdir, str(mark))))  # what an unrestricted reader does
    assert mark.exists()


def test_dotted_names_do_not_lead_out_of_numpy():
    for module, name in (
        ("numpy", "ndarray.tofile"),
        ("numpy._core.multiarray", "_reconstruct.__globals__"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy", "save"),
    ):
        data = pickle.PROTO + b"\x04" + pickle.SHORT_BINUNICODE + bytes([len(module)])
        data += module.encode() + pickle.SHORT_BINUNICODE + bytes([len(name)]) + name.encode()
        data += pickle.STACK_GLOBAL + pickle.STOP
        with pytest.raises(pickle.UnpicklingError, match="it asks for"):
            load(io.BytesIO(data), len(data), NUMPY.get)


# Files that do not fit


BAD = {
    "lists 2 images, VOC2007/trainval has 3": lambda: inclusive()[:2],
    "holds a ndarray": lambda: np.zeros(3),
    "lacks boxes or integer indexes": lambda: {"boxes": inclusive()},
    "has 2 entries of boxes and 3 indexes": lambda: mist(inclusive()[:2]),
    r"has no image 17 \(1 images are missing\)": lambda: mist(inclusive(), ids=[*IDS[:2], 99]),
    r"boxes of image 2008000002 \(2008_000002.jpg\) reach beyond its 60 x 40": lambda: [
        inclusive()[i] for i in (1, 0, 2)
    ],
    r"boxes of image 5 \(000005.jpg\) are inverted": lambda: [
        np.zeros((0, 4)), np.asarray([[9, 9, 3, 20]]), np.zeros((0, 4)),
    ],
    r"boxes of image 17 \(000017.jpg\) are no numbers": lambda: [
        *inclusive()[:2], np.zeros((2, 3)),
    ],
    r"boxes of image 17 \(000017.jpg\) are inverted or not finite": lambda: [
        *inclusive()[:2], np.asarray([[1, 2, np.nan, 4]]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_named(split, tmp_path, message):
    path = write(tmp_path / "a.pkl", BAD[message]())
    with pytest.raises(BadInput, match=message):
        import_official(path, split, tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("kind", ["missing", "cut short", "text", "empty"])
def test_unreadable_pickles_end_in_one_line(voc, tmp_path, capsys, kind):
    path = write(tmp_path / "a.pkl", mist(inclusive()))
    if kind == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes({"cut short": data[:-50], "text": b"hello\n", "empty": b""}[kind])
    flags = ["--data", str(voc), "--split", "trainval", "--store", str(tmp_path / "s")]
    assert entry_point(main, ["read", *flags, "--pickle", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ")
    assert not (tmp_path / "s").exists()
