"""Export: resumable, the same bits whatever the shards, and no look at what it must not see."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from small_sam import blocky_image, small_sam
from stores import stored_proposals

from bridge.clues.interface import Clues, minmax
from bridge.export import main
from bridge.proposals.export import ExportConfig, export_split, shrink
from bridge.proposals.prompts import PromptConfig
from bridge.proposals.selection import ProposalConfig
from bridge.runtime.ranks import parse_shard
from bridge.weights.fingerprints import network_fingerprint
from weaksam_jax.cli import entry_point
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.store import proposal_path, read_manifest
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays

SETTINGS = ExportConfig(
    prompts=PromptConfig(grid_side=3, kernel_cross=17),
    proposals=ProposalConfig(stability_offset=0.2, max_boxes=30, dedupe_nms=0.95),
    clue_side=24,
)
TAGS = ((0,), (1, 2), (), (2,), (0, 1))


class FakeClues:
    """A clue network of the image's brightness; remembers what it was asked."""

    def __init__(self, name="fake", fail_at=None):
        self.fingerprint, self.fail_at, self.asked = name, fail_at, []

    def __call__(self, image, class_ids):
        if len(self.asked) == self.fail_at:
            raise KeyboardInterrupt
        self.asked.append(class_ids)
        ids = np.asarray([1] if class_ids is None else class_ids, np.int64)
        rolls = [np.roll(image.mean(-1), 7 * k, axis=1) for k in ids]
        maps = minmax(np.asarray(rolls).reshape(len(ids), *image.shape[:2]))
        return Clues(maps, maps**2, np.stack([maps, maps]), ids, np.arange(3, dtype=np.float32))


@pytest.fixture
def split(tmp_path):
    records = []
    for i, tags in enumerate(TAGS):
        path = tmp_path / "images" / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(blocky_image(i, 40 + i, 60)).save(path)
        records.append(TagRecord(100 + i, path.name, path, 60, 40 + i, tags))
    return TagSplit("toy", "train", ("a", "b", "c"), (1, 2, 3), tuple(records))


def contents(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def export(split, sam, out, network=None, config=SETTINGS, shard=(0, 1), workers=1):
    network = network or FakeClues()
    folders = out / "p", out / "c"
    return export_split(split, network, sam, config, *folders, shard, False, workers)


def test_shards_and_a_kill_end_in_the_same_bits(split, sam, tmp_path):
    whole, shards, killed = (tmp_path / name for name in ("whole", "shards", "killed"))
    report = export(split, sam, whole)
    assert (report.written, report.skipped, report.complete) == (5, 0, True)
    for index in (2, 0, 1):
        assert read_manifest(shards / "p", "train") is None
        report = export(split, sam, shards, shard=(index, 3))
        assert report.complete == (index == 1)
    assert contents(shards) == contents(whole)
    export(split, sam, tmp_path / "threads", workers=3)
    assert contents(tmp_path / "threads") == contents(whole)

    with pytest.raises(KeyboardInterrupt):
        export(split, sam, killed, FakeClues(fail_at=3))
    assert len(contents(killed / "p")) == 3 and read_manifest(killed / "p", "train") is None
    report = export(split, sam, killed)
    assert (report.written, report.skipped) == (2, 3)
    assert contents(killed) == contents(whole)
    before = contents(whole)
    assert export(split, sam, whole).written == 0 and contents(whole) == before


def test_files_hold_what_was_computed(split, sam, tmp_path):
    export(split, sam, tmp_path)
    manifest = read_manifest(tmp_path / "p", "train")
    stored = [stored_proposals(tmp_path / "p", "train", one.image_id) for one in split.records]
    assert manifest["images"] == [one.image_id for one in split.records]
    assert manifest["per_image"] == pytest.approx(np.mean([len(one) for one in stored]))
    assert manifest["labels"] == "tags" and manifest["negatives"] == 1
    assert manifest["networks"]["clues"] == "fake" and manifest["versions"]["torch"]
    for record, proposals in zip(split.records, stored, strict=True):
        assert (proposals.height, proposals.width) == (record.height, record.width)
        assert 0 < len(proposals) <= 30 and len(proposals.masks) == len(proposals)
        for rle, box in zip(proposals.masks, proposals.boxes, strict=True):
            mask = coco_mask.decode({"size": [record.height, record.width], "counts": rle})
            y, x = np.nonzero(mask)
            np.testing.assert_array_equal(box, [x.min(), y.min(), x.max() + 1, y.max() + 1])
        clues, metadata = read_arrays(proposal_path(tmp_path / "c", "train", record.image_id))
        assert metadata["labels"] == "tags"
        assert clues["class_ids"].tolist() == list(record.tags)
        assert clues["coarse"].shape == (len(record.tags), round(record.height * 0.4), 24)
        assert clues["fine"].dtype == np.float16 and clues["class_logits"].shape == (3,)
        np.testing.assert_array_equal(clues["points"], proposals.points)
        assert (len(clues["points"]) > 0) == (len(record.tags) > 0)
        if not record.tags:
            assert (proposals.source == 0).all()


def test_only_what_changed_is_done_again(split, sam, tmp_path):
    export(split, sam, tmp_path)
    path = proposal_path(tmp_path / "p", "train", 101)
    path.write_bytes(path.read_bytes()[:-7])
    proposal_path(tmp_path / "c", "train", 103).unlink()
    assert export(split, sam, tmp_path).written == 2
    fewer = replace(SETTINGS, proposals=replace(SETTINGS.proposals, max_boxes=3))
    assert export(split, sam, tmp_path, config=fewer).written == 5
    unused = replace(fewer, search=replace(fewer.search, max_boxes=7))
    assert export(split, sam, tmp_path, config=unused).written == 0
    assert export(split, small_sam(1), tmp_path, config=fewer).written == 5
    other = FakeClues("other")
    assert export(split, small_sam(1), tmp_path, other, config=fewer).written == 5
    records = (replace(split.records[0], tags=(2,)), *split.records[1:])
    changed = replace(split, records=records)
    assert export(changed, small_sam(1), tmp_path, other, config=fewer).written == 1


def test_predicted_labels_never_look_at_tags(split, sam, tmp_path):
    predicted = replace(SETTINGS, labels="predicted")
    network = FakeClues()
    export(split, sam, tmp_path / "a", network, predicted)
    assert network.asked == [None] * 5
    blank = replace(split, records=tuple(replace(one, tags=()) for one in split.records))
    export(blank, sam, tmp_path / "b", FakeClues(), predicted)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    by_tags = FakeClues()
    export(split, sam, tmp_path / "c", by_tags)
    assert by_tags.asked == list(TAGS)


def test_grid_alone_and_selective_search(split, sam, tmp_path):
    report = export_split(
        split, None, sam, SETTINGS, tmp_path / "g", tmp_path / "none", progress=False
    )
    assert report.complete and not (tmp_path / "none").exists()
    assert (stored_proposals(tmp_path / "g", "train", 100).source == 0).all()
    search = replace(SETTINGS, source="selective_search")
    report = export_split(
        split, FakeClues(), None, search, tmp_path / "s", tmp_path / "c", progress=False
    )
    assert report.complete
    found = stored_proposals(tmp_path / "s", "train", 100)
    assert (found.source == 4).all() and found.masks is None
    assert proposal_path(tmp_path / "c", "train", 100).exists()
    with pytest.raises(ValueError, match="need a SAM"):
        export_split(split, None, None, SETTINGS, tmp_path, tmp_path, progress=False)


def test_missing_and_broken_images_name_the_file(split, sam, tmp_path):
    split.records[3].path.write_bytes(split.records[3].path.read_bytes()[:80])
    with pytest.raises(BadInput, match=r"003\.png"):
        export(split, sam, tmp_path)
    split.records[3].path.unlink()
    with pytest.raises(BadInput, match=r"003\.png"):
        export(split, sam, tmp_path)
    assert read_manifest(tmp_path / "p", "train") is None
    assert not list(tmp_path.rglob("*.tmp"))


def test_networks_that_cannot_be_compared_are_refused(split, sam, tmp_path):
    class Opaque:
        def __init__(self):
            self.thing = object()

    with pytest.raises(TypeError, match="thing"):
        export(split, sam, tmp_path, Opaque())


def test_fingerprints_of_networks_follow_weights_and_settings():
    class Network:
        def __init__(self, seed, side=9):
            self.model = small_sam(seed)
            self.weight = torch.full((2,), float(seed))
            self.config = PromptConfig(grid_side=side)
            self.scales = (1.0, 0.8)

    first = network_fingerprint(Network(0))
    assert first == network_fingerprint(Network(0))
    assert first != network_fingerprint(Network(1)) != network_fingerprint(Network(1, side=8))
    for change in ({"weight": torch.ones(2)}, {"scales": (1.0,)}):
        network = Network(0)
        vars(network).update(change)
        assert network_fingerprint(network) != first


def test_shrink_keeps_the_mean():
    maps = np.random.default_rng(0).random((2, 40, 64)).astype(np.float32)
    small = shrink(maps, 16)
    assert small.shape == (2, 10, 16) and small.dtype == np.float16
    np.testing.assert_allclose(small, maps.reshape(2, 10, 4, 16, 4).mean((2, 4)), atol=1e-3)
    assert shrink(maps[:0], 16).shape == (0, 10, 16)
    np.testing.assert_allclose(shrink(maps, 200), maps, atol=1e-3)


@pytest.mark.parametrize("text", ["3/3", "1", "a/2", "-1/2", "1/2/3"])
def test_bad_shards(text):
    with pytest.raises(BadInput, match="shard"):
        parse_shard(text)


def test_command_line(tmp_path, capsys):
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    rows = ["file,tags,split"]
    for i in range(3):
        Image.fromarray(blocky_image(i, 50, 60)).save(data / "images" / f"{i}.jpg")
        rows.append(f"{i}.jpg,cat,{'test' if i == 2 else 'train'}")
    (data / "tags.csv").write_text("\n".join(rows) + "\n")
    common = ["--data", str(data), "--split", "train", "--out", str(tmp_path / "out")]
    search = [*common, "--proposals", "selective_search"]
    assert entry_point(main, [*search, "--shard", "0/2"]) == 0
    assert read_manifest(tmp_path / "out", "train") is None
    assert entry_point(main, [*search, "--shard", "1/2"]) == 0
    assert len(read_manifest(tmp_path / "out", "train")["images"]) == 2
    decode = [*common[:-1], str(tmp_path / "decoded"), "--keep-decoded", "--encoder-dtype"]
    assert entry_point(main, [*decode, "bfloat16"]) == 0
    ids = read_manifest(tmp_path / "decoded", "train")["images"]
    stored = [stored_proposals(tmp_path / "decoded", "train", one) for one in ids]
    assert all(len(one.decoded.boxes) >= 300 > len(one) > 0 for one in stored)  # 10 x 10 x 3
    capsys.readouterr()
    assert entry_point(main, [*search, "--shard", "2/2"]) == 2
    assert entry_point(main, [*common, "--sam", str(tmp_path / "no.pth")]) == 2
    assert entry_point(main, ["--data", str(tmp_path / "none"), *search[2:]]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3 and "2/2" in lines[0] and "no.pth" in lines[1] and "none" in lines[2]
    taken = tmp_path / "file"
    taken.touch()
    assert entry_point(main, [*search, "--out", str(taken)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {taken}/train/manifest.json: cannot be used (Not a directory)")
