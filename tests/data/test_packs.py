"""Packed stores: the same content, random access, damage that is named."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from stores import stored_proposals

from weaksam_jax.data.packs import open_pack, write_pack
from weaksam_jax.data.sealed import read_sealed_json, write_sealed_json
from weaksam_jax.data.store import (
    Proposals,
    is_stored,
    proposal_path,
    read_stored,
    write_proposals,
)
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_arrays

IMAGES = [3, 17, 103, 2008000002, 2008000017]


def proposals_of(image_id: int, count: int) -> Proposals:
    rng = np.random.default_rng(image_id)
    low = rng.integers(0, 20, (count, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 20, (count, 2))], 1).astype(np.float32)
    drawn = np.asfortranarray(rng.random((40, 50, count)) < 0.5, np.uint8)
    masks = tuple(one["counts"] for one in coco_mask.encode(drawn))
    return Proposals(
        image_id,
        40,
        50,
        boxes=boxes,
        source=rng.integers(0, 4, count).astype(np.uint8),
        prompt=np.full(count, -1, np.int32),
        token=np.ones(count, np.uint8),
        predicted_iou=rng.random(count).astype(np.float32),
        stability=rng.random(count).astype(np.float32),
        masks=masks,
        points=rng.random((3, 5)).astype(np.float32),
    )


def pack(root, to, per_shard=2):
    files = [proposal_path(root, "train", one).read_bytes() for one in IMAGES]
    write_pack(to / "train", IMAGES, files, per_shard)


@pytest.fixture
def stores(tmp_path):
    """The same proposals (one image without any) as single files and packed."""
    loose, packed = tmp_path / "loose", tmp_path / "packed"
    for place, image_id in enumerate(IMAGES):
        write_proposals(loose, "train", proposals_of(image_id, 5 * place), {"job": "x", "ü": "ö"})
    pack(loose, packed)
    return loose, packed


def test_both_layouts_read_alike(stores):
    loose, packed = stores
    assert len(list((packed / "train").iterdir())) == 4  # three shards and the index
    for image_id in reversed(IMAGES):
        assert is_stored(packed, "train", image_id)
        arrays, metadata = read_stored(packed, "train", image_id)
        expected, expected_metadata = read_stored(loose, "train", image_id)
        assert metadata == expected_metadata and arrays.keys() == expected.keys()
        for name, value in expected.items():
            assert arrays[name].dtype == value.dtype
            np.testing.assert_array_equal(arrays[name], value)
        one, other = (stored_proposals(root, "train", image_id) for root in stores)
        assert one.masks == other.masks and (one.height, one.width) == (40, 50)
        np.testing.assert_array_equal(one.boxes, other.boxes)
    assert not is_stored(packed, "train", 4) and not is_stored(packed, "test", 3)
    with pytest.raises(BadInput, match=r"pack\.json: has no image 4"):
        stored_proposals(packed, "train", 4)


def test_records_are_the_files_and_packing_again_gives_the_same_bytes(stores, tmp_path):
    loose, packed = stores
    opened = open_pack(packed / "train")
    for image_id in IMAGES:
        assert opened.record(image_id) == proposal_path(loose, "train", image_id).read_bytes()
    pack(loose, tmp_path / "again")
    for path in (packed / "train").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / "train" / path.name).read_bytes()


def test_threads_read_one_pack(stores):
    _, packed = stores
    ids = np.random.default_rng(0).choice(IMAGES, 200).tolist()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: stored_proposals(packed, "train", one), ids))
    for image_id, proposals in zip(ids, found, strict=True):
        expected = proposals_of(image_id, 5 * IMAGES.index(image_id))
        np.testing.assert_array_equal(proposals.boxes, expected.boxes)


def test_a_pack_that_was_written_anew_is_opened_anew(stores):
    loose, packed = stores
    assert len(stored_proposals(packed, "train", 17)) == 5
    write_proposals(loose, "train", proposals_of(17, 9), {})
    pack(loose, packed, per_shard=5)
    assert len(stored_proposals(packed, "train", 17)) == 9


def test_damage_is_named(stores):
    _, packed = stores
    shard, index = packed / "train" / "00001.array_record", packed / "train" / "pack.json"
    known, whole = read_sealed_json(index), shard.read_bytes()
    spoilt = bytearray(whole)
    place = whole.index(b"predicted_iou") if b"predicted_iou" in whole else len(whole) // 2
    spoilt[place] ^= 0xFF
    shard.write_bytes(spoilt)
    with pytest.raises(BadInput, match=r"00001\.array_record: image (103|2008000002) cannot be"):
        for image_id in IMAGES:
            stored_proposals(packed, "train", image_id)
    shard.write_bytes(whole[:-1])
    index.touch()  # as a copy that was cut short would have it: files of another time
    with pytest.raises(BadInput, match=rf"00001\.array_record: has {len(whole) - 1} bytes instead"):
        stored_proposals(packed, "train", 3)
    shard.unlink()
    with pytest.raises(BadInput, match=r"00001\.array_record: does not exist"):
        open_pack(packed / "train")
    for content in ({"format": 99}, {**known, "images": "all"}, {**known, "per_shard": 0}):
        write_sealed_json(index, content)
        with pytest.raises(BadInput, match=r"pack\.json: is no index"):
            open_pack(packed / "train")


def test_a_record_that_is_no_file_is_named(tmp_path):
    write_arrays(tmp_path / "a.safetensors", {"a": np.zeros(3)})
    cut = (tmp_path / "a.safetensors").read_bytes()[:-5]
    write_pack(tmp_path / "train", [7], [cut])
    with pytest.raises(BadInput, match=r"pack\.json, image 7: is no whole safetensors file"):
        read_stored(tmp_path, "train", 7)


def test_full_disk_while_packing_names_the_shard(small_disk):
    folder = small_disk(256)
    noise = np.random.default_rng(0).bytes(1 << 20)
    with pytest.raises(OSError, match="No space") as caught:
        write_pack(folder, [1], [noise])
    assert caught.value.filename == str(folder / "00000.array_record")
    assert list(folder.iterdir()) == []
