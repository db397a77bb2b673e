"""Packing a finished split and verifying stores of both layouts."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from small_sam import blocky_image

from bridge.export import main as export_main
from bridge.pack import main
from bridge.proposals.packing import pack_split
from bridge.proposals.verify import verify_split
from weaksam_jax.cli import entry_point
from weaksam_jax.data.packs import open_pack, write_pack
from weaksam_jax.data.store import (
    proposal_path,
    read_manifest,
    read_stored,
    write_manifest,
    write_stored,
)
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays

IDS = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    rows = ["file,tags,split"]
    for i in IDS:
        Image.fromarray(blocky_image(i, 90, 100)).save(folder / "images" / f"{i}.png")
        rows.append(f"{i}.png,cat,train")
    Image.fromarray(blocky_image(9, 90, 100)).save(folder / "images" / "9.png")
    (folder / "tags.csv").write_text("\n".join([*rows, "9.png,cat,test"]) + "\n")
    return folder


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A store of selective search, and clue files of the same fingerprints beside it."""
    out = tmp_path_factory.mktemp("finished")
    flags = ["--data", str(data), "--split", "train", "--out", str(out)]
    assert entry_point(export_main, [*flags, "--proposals", "selective_search"]) == 0
    for image_id in read_manifest(out, "train")["images"]:
        _, metadata = read_stored(out, "train", image_id)
        kept = {"fingerprint": metadata["fingerprint"]}
        write_clues(out / "clues", image_id, np.ones((1, 2, 2), np.float16), kept["fingerprint"])
    return out


def write_clues(root, image_id, maps, fingerprint):
    metadata = {"fingerprint": fingerprint}
    write_stored(root, "train", image_id, arrays={"fine": maps}, metadata=metadata)


@pytest.fixture
def store(finished, tmp_path):
    """A copy, to be damaged."""
    return shutil.copytree(finished, tmp_path / "store")


def change(store, image_id, metadata=None, **arrays):
    """Rewrites columns or metadata of one image's file."""
    old, kept = read_stored(store, "train", image_id)
    new = {"arrays": old | arrays, "metadata": kept | (metadata or {})}
    write_stored(store, "train", image_id, **new)


def column(store, image_id, name):
    return read_arrays(proposal_path(store, "train", image_id))[0][name].copy()


def test_a_packed_store_is_the_same_store(store, tmp_path):
    packed = tmp_path / "packed"
    assert pack_split(store, "train", packed, per_shard=3) == 4
    assert read_manifest(packed, "train") == read_manifest(store, "train")
    assert verify_split(packed, "train", progress=False) == 4
    for root, other in ((packed, store), (packed / "clues", store / "clues")):
        for image_id in IDS:
            expected = proposal_path(other, "train", image_id).read_bytes()
            assert open_pack(root / "train").record(image_id) == expected
    assert verify_split(store, "train", progress=False) == 4  # left as it was


def test_clues_of_a_run_directory_go_along(store, tmp_path, capsys):
    """There clues lie beside the proposals, not below them; the packed store has them below."""
    clues = (store / "clues").rename(tmp_path / "clues")
    packed = tmp_path / "packed"
    flags = ["--store", str(store), "--split", "train", "--clues", str(clues)]
    assert entry_point(main, [*flags, "--to", str(packed)]) == 0
    expected = proposal_path(clues, "train", 3).read_bytes()
    assert open_pack(packed / "clues" / "train").record(3) == expected
    write_clues(clues, 3, np.ones(1), "x")
    assert entry_point(main, [*flags, "--verify"]) == 2
    assert f"{proposal_path(clues, 'train', 3)}: is of another export" in capsys.readouterr().err


def test_a_packed_store_measures_the_same(store, tmp_path, data):
    from experiments.pipeline.metrics import proposals
    from weaksam_jax.data.datasets import open_tags

    packed = tmp_path / "packed"
    pack_split(store, "train", packed)
    splits, none = {"train": open_tags(data, "train")}, {"train": None}
    assert proposals(packed, splits, none) == proposals(store, splits, none)


def spoil_boxes(store, change_box):
    boxes = column(store, 3, "boxes")
    change_box(boxes)
    change(store, 3, boxes=boxes)


def assign(row, place, value):
    def work(boxes):
        boxes[row, place] = value

    return work


SPOIL = {
    r"train/03/3\.safetensors: is no whole safetensors": lambda store: proposal_path(
        store, "train", 3
    ).write_bytes(proposal_path(store, "train", 3).read_bytes()[:-3]),
    r"train/03/3\.safetensors: does not exist": lambda store: proposal_path(
        store, "train", 3
    ).unlink(),
    r"train/03/3\.safetensors: is of another export": lambda store: change(
        store, 3, {"job": "0123"}
    ),
    r"train/03/3\.safetensors: is no proposal file": lambda store: change(
        store, 3, {"version": "0"}
    ),
    r"train/03/3\.safetensors: has a box outside": lambda store: spoil_boxes(
        store, assign(1, 2, 100.5)
    ),
    r"train/03/3\.safetensors: has an empty box": lambda store: spoil_boxes(
        store, lambda boxes: boxes.__setitem__((0, 2), boxes[0, 0])
    ),
    r"train/03/3\.safetensors: has boxes that are no four finite": lambda store: spoil_boxes(
        store, assign(0, 0, np.nan)
    ),
    r"train/03/3\.safetensors: has a box of an unknown source": lambda store: change(
        store, 3, source=np.full_like(column(store, 3, "source"), 77)
    ),
    r"train/03/3\.safetensors: has \d+ boxes and no column token": lambda store: change(
        store, 3, token=column(store, 3, "token")[:-1]
    ),
    r"train/03/3\.safetensors: has a box of a prompt": lambda store: change(
        store, 3, prompt=np.zeros_like(column(store, 3, "prompt"))
    ),
    r"train/03/3\.safetensors: has \d+ boxes and masks of another number": lambda store: change(
        store, 3, rle_bytes=np.ones(4, np.uint8), rle_offsets=np.asarray([0, 4], np.int32)
    ),
    r"clues/train/03/3\.safetensors: is of another export": lambda store: write_clues(
        store / "clues", 3, np.ones(1), "x"
    ),
    r"train/03/3\.safetensors: is the file of image 4, not 3": lambda store: shutil.copy(
        proposal_path(store, "train", 4), proposal_path(store, "train", 3)
    ),
    r"train/04/104\.safetensors: is not in the manifest": lambda store: shutil.copy(
        proposal_path(store, "train", 4), proposal_path(store, "train", 104)
    ),
    r"train/manifest\.json: says 7 boxes per image": lambda store: write_manifest(
        store, "train", IDS, read_manifest(store, "train") | {"per_image": 7}
    ),
    r"train/manifest\.json: does not exist": lambda store: (
        store / "train" / "manifest.json"
    ).unlink(),
}


@pytest.mark.parametrize("message", SPOIL)
def test_verify_names_what_is_bad(store, capsys, message):
    flags = ["--store", str(store), "--split", "train", "--verify"]
    assert entry_point(main, flags) == 0
    SPOIL[message](store)
    capsys.readouterr()
    assert entry_point(main, flags) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(BadInput, match=message):
        verify_split(store, "train", progress=False)
    assert line.startswith(f"error: {store}/")


def test_verify_counts_the_bad_files(store):
    for image_id in (2, 4):
        proposal_path(store, "train", image_id).unlink()
    with pytest.raises(BadInput, match=r"02/2\.safetensors: does not exist \(bad files: 2\)"):
        verify_split(store, "train", progress=False)


def test_export_verifies_against_the_data_set(store, data, tmp_path, capsys):
    flags = ["--data", str(data), "--split", "train", "--out", str(store), "--verify"]
    assert entry_point(export_main, flags) == 0
    fewer = shutil.copytree(data, tmp_path / "fewer")
    table = fewer / "tags.csv"
    table.write_text(table.read_text().replace("4.png,cat,train\n", ""))
    (fewer / "images" / "4.png").unlink()
    flags[1] = str(fewer)
    assert entry_point(export_main, flags) == 2
    assert "lists other images than the data set" in capsys.readouterr().err


def test_a_truncated_pack_ends_in_one_line(store, tmp_path, capsys):
    packed = tmp_path / "packed"
    pack_split(store, "train", packed)
    shard = packed / "train" / "00000.array_record"
    shard.write_bytes(shard.read_bytes()[:-100])
    (packed / "train" / "pack.json").touch()
    capsys.readouterr()
    assert entry_point(main, ["--store", str(packed), "--split", "train", "--verify"]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "error" in one]
    assert line.startswith(f"error: {shard}: has {shard.stat().st_size} bytes instead of")


def test_what_cannot_be_packed(store, tmp_path, capsys):
    flags = ["--store", str(store), "--split", "train"]
    for more in ([], ["--to", str(tmp_path / "x"), "--verify"], ["--to", str(store)]):
        assert entry_point(main, [*flags, *more]) == 2
    pack_split(store, "train", tmp_path / "packed")
    with pytest.raises(BadInput, match="is a packed store"):
        pack_split(tmp_path / "packed", "train", tmp_path / "again")
    proposal_path(store, "train", 1).unlink()
    with pytest.raises(BadInput, match=r"1\.safetensors: does not exist"):
        pack_split(store, "train", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_pack_of_other_images_than_the_manifest(store, tmp_path):
    packed = tmp_path / "packed"
    pack_split(store, "train", packed)
    files = [proposal_path(store, "train", one).read_bytes() for one in (1, 2, 3, 4, 4)]
    write_pack(packed / "train", [*IDS, 5], files)
    with pytest.raises(BadInput, match=r"pack\.json: lists other images"):
        verify_split(packed, "train", progress=False)
    assert json.loads((packed / "train" / "pack.json").read_text())["images"] == [*IDS, 5]
