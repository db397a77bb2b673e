"""One changed byte of a store is noticed, wherever it is; values that cannot be are refused."""

import shutil

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from stores import stored_proposals

from bridge.proposals.verify import verify_split
from weaksam_jax.data.packs import write_pack
from weaksam_jax.data.sealed import open_arrays, read_sealed_json, seal_arrays, write_sealed_json
from weaksam_jax.data.store import (
    DecodedMasks,
    Proposals,
    proposal_path,
    read_manifest,
    read_stored,
    write_manifest,
    write_proposals,
    write_stored,
)
from weaksam_jax.errors import BadInput
from weaksam_jax.files import parse_arrays

HEIGHT, WIDTH = 20, 30
BOXES = np.asarray([[0, 0, 10, 10], [5, 5, 30, 20], [1, 2, 3, 4]], np.float32)


def proposals(image_id=7):
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8, order="F")
    for index, (x1, y1, x2, y2) in enumerate(BOXES.astype(int)):
        pixels[y1:y2, x1:x2, index] = 1
    masks = tuple(one["counts"] for one in coco_mask.encode(pixels))
    rows = {"source": np.asarray([0, 0, 1], np.uint8), "prompt": np.asarray([-1, -1, 0], np.int32)}
    rows |= {"token": np.ones(3, np.uint8), "stability": np.ones(3, np.float32)}
    rows |= {"predicted_iou": np.asarray([0.9, 0.8, 0.7], np.float32)}
    points = np.asarray([[2, 3, 0.5, 0, 1]], np.float32)
    decoded = DecodedMasks(boxes=BOXES.astype(np.uint16), stability_offset=1.0, **rows)
    more = {"masks": masks, "points": points, "decoded": decoded}
    return Proposals(image_id, HEIGHT, WIDTH, boxes=BOXES, **rows, **more)


@pytest.fixture
def store(tmp_path):
    """Two images with their manifest; the manifest's means are true."""
    for image_id in (7, 12):
        metadata = {"job": "j", "fingerprint": f"{image_id}"}
        write_proposals(tmp_path / "s", "train", proposals(image_id), metadata)
    counts = {"per_image": 3.0, "per_source": {"grid": 2.0, "coarse": 1.0}, "fingerprint": "j"}
    write_manifest(tmp_path / "s", "train", [12, 7], counts)
    return tmp_path / "s"


def flips(path, places):
    """The file with one byte changed, at every place in turn; whole again at the end."""
    whole = path.read_bytes()
    for place in places:
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << place % 8
        path.write_bytes(spoilt)
        yield place
    path.write_bytes(whole)


def test_every_byte_of_an_images_file_counts(store):
    path = proposal_path(store, "train", 7)
    whole = path.read_bytes()
    for place in range(len(whole)):
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << place % 8
        with pytest.raises(BadInput) as caught:
            open_arrays(bytes(spoilt), str(path))
        assert caught.value.path == str(path) and "\n" not in str(caught.value), place
    for place in flips(path, range(0, len(whole), 101)):
        with pytest.raises(BadInput, match=r"7\.safetensors"):
            stored_proposals(store, "train", 7)
        assert place < len(whole)
    assert len(stored_proposals(store, "train", 7)) == 3


def test_every_byte_of_the_manifest_counts(store):
    path = store / "train" / "manifest.json"
    for place in flips(path, range(path.stat().st_size)):
        with pytest.raises(BadInput, match=r"manifest\.json"):
            read_manifest(store, "train")
        assert place >= 0
    assert verify_split(store, "train", progress=False) == 2


def test_bytes_of_a_pack_count_when_it_is_verified(store, tmp_path):
    files = [proposal_path(store, "train", one).read_bytes() for one in (7, 12)]
    packed = tmp_path / "packed"
    write_pack(packed / "train", [7, 12], files, per_shard=1)
    shutil.copy(store / "train" / "manifest.json", packed / "train" / "manifest.json")
    assert verify_split(packed, "train", progress=False) == 2
    for name in ("00000.array_record", "00001.array_record", "pack.json"):
        path = packed / "train" / name
        size = path.stat().st_size
        for place in flips(path, range(0, size, max(1, size // 40))):
            with pytest.raises(BadInput, match=r"0000\d\.array_record|pack\.json"):
                verify_split(packed, "train", progress=False)
            assert place < size
    assert verify_split(packed, "train", progress=False) == 2


def test_the_arrays_are_what_any_reader_of_safetensors_finds():
    arrays = {"a": np.arange(6, dtype=np.int16).reshape(2, 3), "b": np.asarray(2.5, np.float32)}
    metadata = {"x": '"checksum":"' + 32 * "0", "a": "ü"}
    data = seal_arrays(arrays, metadata)
    assert data == seal_arrays(arrays, metadata)
    for read in (open_arrays, parse_arrays):
        found, known = read(data, "x")
        assert {name: known[name] for name in metadata} == metadata
        for name, value in arrays.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)


def test_sealed_json_keeps_its_values(tmp_path):
    value = {"b": [1, 2.5, None, True, "ü"], "a": {"c": 1e-9}}
    write_sealed_json(tmp_path / "a.json", value)
    assert read_sealed_json(tmp_path / "a.json") == value
    assert list(read_sealed_json(tmp_path / "a.json")) == ["b", "a"]
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(BadInput, match="has no checksum"):
        read_sealed_json(tmp_path / "b.json")


def changed(name, place, value):
    def work(arrays):
        arrays[name] = arrays[name].copy()
        arrays[name][place] = value

    return work


def other(name, value):
    return lambda arrays: arrays.update({name: value})


def lost(name):
    return lambda arrays: arrays.pop(name)


# What a stranger's store may hold, with a right checksum.
STRANGE = {
    "no size": [
        lost("size"),
        other("size", np.asarray([0, 5], np.int32)),
        other("size", np.asarray([2**30, 2**30], np.int32)),
        other("size", np.asarray([20.0, 30.0])),
        other("size", np.zeros((2, 1), np.int32)),
    ],
    "box": [
        lost("boxes"),
        changed("boxes", (0, 0), np.nan),
        changed("boxes", (0, 2), np.inf),
        changed("boxes", (0, 0), -31),
        changed("boxes", (1, 2), 61),
        changed("boxes", (1, 0), 1e30),
        changed("boxes", (0, 0), 11),
        other("boxes", BOXES.ravel()),
        other("boxes", BOXES.astype(np.float64)),
        other("boxes", np.asarray(3, np.float32)),
    ],
    "column": [
        lost("token"),
        other("source", np.zeros(2, np.uint8)),
        other("prompt", np.zeros(3, np.float32)),
        other("decoded_source", np.zeros(9, np.uint8)),
    ],
    "infinity": [
        changed("predicted_iou", 0, np.nan),
        changed("stability", 1, -np.inf),
        changed("decoded_stability", 1, np.inf),
    ],
    "source": [changed("source", 0, 200)],
    "prompt": [
        changed("prompt", 0, -2),
        changed("token", 0, 9),
        changed("decoded_prompt", 2, 2**30),
    ],
    "points": [lost("points"), other("points", np.zeros((3, 4), np.float32))],
    "stability_offset": [other("decoded_stability_offset", np.asarray(np.nan))],
    "masks": [
        changed("rle_offsets", 0, -5),
        changed("rle_offsets", 1, 2**31 - 1),
        changed("rle_offsets", 3, 10_000),
        changed("rle_offsets", 1, 0),
        lost("rle_bytes"),
        other("rle_offsets", np.zeros(0, np.int32)),
        other("rle_offsets", np.asarray([0, 1, 2, 3], np.int64)),
    ],
}


@pytest.mark.parametrize("word", STRANGE)
def test_columns_that_cannot_be_end_in_one_line(store, word):
    arrays, metadata = read_stored(store, "train", 7)
    for spoil in STRANGE[word]:
        strange = dict(arrays)
        spoil(strange)
        write_stored(store, "train", 7, arrays=strange, metadata=metadata)
        with pytest.raises(BadInput, match=rf"7\.safetensors: .*{word}"):
            stored_proposals(store, "train", 7)


@pytest.mark.parametrize("code", [b"\x00\xff", b"oooooooooooo", b"1", b"~" * 9, b"0" * 400, b"P"])
def test_codes_that_are_no_mask_never_reach_pycocotools(store, code):
    good = proposals()
    spoilt = Proposals(**{**vars(good), "masks": (*good.masks[:2], code)})
    write_proposals(store, "train", spoilt, {"job": "j"})
    with pytest.raises(BadInput, match=r"image 7: mask 2 is none of 20 x 30 pixels"):
        stored_proposals(store, "train", 7).rles()
    with pytest.raises(BadInput, match=r"7\.safetensors: mask 2 is none of"):
        verify_split(store, "train", progress=False)


def test_decoded_masks_that_are_empty_have_no_stability(store):
    arrays, metadata = read_stored(store, "train", 7)
    changed("decoded_stability", 1, np.nan)(arrays)
    write_stored(store, "train", 7, arrays=arrays, metadata=metadata)
    assert np.isnan(stored_proposals(store, "train", 7).decoded.stability[1])


def test_masks_come_back(store):
    rles = stored_proposals(store, "train", 7).rles()
    assert coco_mask.area(rles).tolist() == [100, 375, 4]
    assert coco_mask.toBbox(rles)[1].tolist() == [5, 5, 25, 15]
