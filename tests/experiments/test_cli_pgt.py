"""`python -m experiments.pgt`: both formats, both sheets, refusals."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from experiments.options import RoadOptions
from experiments.pgt import main, numbered, parse
from experiments.settings import RoadSettings
from experiments.stages import Journey
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags, open_truth
from weaksam_jax.data.mini import write_mini
from weaksam_jax.pgt import PgtSettings


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(data set, detections file): every true box, each with a smaller one, under VOC's names."""
    folder = tmp_path_factory.mktemp("pgt")
    data = write_mini(folder, 0, 6, 2, progress=False)
    found = []
    for record in open_truth(data, "trainval").records:
        for label, (x1, y1, x2, y2) in zip(record.labels, record.boxes.tolist(), strict=True):
            for share, score in ((1.0, 0.9), (0.5, 0.2)):
                box = [x1, y1, share * (x2 - x1), share * (y2 - y1)]
                name = record.file_name.removesuffix(".jpg")
                one = {"image_id": name, "category_id": int(label) + 1, "bbox": box}
                found.append({**one, "score": score})
    path = folder / "bbox.json"
    path.write_text(json.dumps(found))
    return data, path


def run(world, out, *more):
    flags = ["--detections", str(world[1]), "--data", str(world[0]), "--out", str(out), *more]
    return entry_point(main, flags)


def test_the_truth_is_found_and_its_parts_fall(world, tmp_path, capsys):
    assert run(world, tmp_path / "pgt.json") == 0
    assert "missed" in capsys.readouterr().out
    sheet = json.loads((tmp_path / "pgt.sheet.json").read_text())
    tags, truth = open_tags(world[0], "trainval"), open_truth(world[0], "trainval")
    for figure in ("recall50", "precision50", "recall70", "precision70"):
        assert sheet["truth"][figure] == 1
    assert sheet["tags"]["without_box"] == 0
    assert sheet["tags"]["tags"] == sum(len(record.tags) for record in tags.records)
    for name, own in sheet["truth"]["per_class"].items():
        label = truth.classes.index(name)
        easy = sum(int(((r.labels == label) & ~r.difficult).sum()) for r in truth.records)
        assert own["objects"] == own["found"] == easy and own["missed"] == 0
    loaded = COCO(str(tmp_path / "pgt.json"))
    assert len(loaded.imgs) == 6 and {one["score"] for one in loaded.anns.values()} == {0.9}


def test_the_picture_shows_pseudo_boxes_where_they_are(world, tmp_path):
    """Without a score threshold the lower box of each object is drawn, too: other pixels."""
    pictures = []
    for more in ((), ("--settings.score-threshold", "-1", "--settings.overlap-threshold", "2")):
        assert run(world, tmp_path / "pgt.json", *more) == 0
        pictures.append(np.asarray(Image.open(tmp_path / "pgt.png").convert("RGB")).astype(int))
    assert pictures[0].shape == pictures[1].shape
    changed = (pictures[0] != pictures[1]).any(-1).mean()
    assert 0.001 < changed < 0.5


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), PgtSettings()),
        (("--settings.rule", "pgf"), PgtSettings.pgf()),
        (("--settings.rule=pgf", "--settings.score-threshold", "0.4"),
         replace(PgtSettings.pgf(), score_threshold=0.4)),
        (("--settings.rule", "release_voc"), PgtSettings(rule="release_voc")),
    ],
)  # fmt: skip
def test_the_rule_brings_its_own_thresholds(flags, expected):
    needed = ["--detections", "a", "--data", "b", "--out", "c"]
    assert parse([*needed, *flags]).settings == expected


def test_the_roads_top_1_is_one_box_whatever_k_is(world, tmp_path):
    data, path = world
    found = [dict(numbered(one)) for one in json.loads(path.read_text())]
    (tmp_path / "wsod").mkdir()
    (tmp_path / "wsod" / "detections_train.json").write_text(json.dumps(found))
    settings = RoadSettings(pgt=PgtSettings(rule="top_k", k=2))
    Journey(RoadOptions(str(data), tmp_path, settings=settings)).run_pgt()
    most = {}
    for name in ("pgt", "top1"):
        made = json.loads((tmp_path / "pgt" / f"{name}.json").read_text())["annotations"]
        most[name] = Counter((one["image_id"], one["category_id"]) for one in made)
    assert set(most["top1"].values()) == {1} and max(most["pgt"].values()) == 2
    assert most["top1"].keys() == most["pgt"].keys()


def test_voc_dict_has_every_image_and_corners(world, tmp_path):
    assert run(world, tmp_path / "coco.json") == 0
    assert run(world, tmp_path / "dict.json", "--format", "voc-dict") == 0
    made = json.loads((tmp_path / "dict.json").read_text())
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert set(made) == {str(image["id"]) for image in coco["images"]}
    rows = [row for rows in made.values() for row in rows]
    assert len(rows) == len(coco["annotations"])
    for row, one in zip(rows, coco["annotations"], strict=True):
        x, y, w, h = one["bbox"]
        assert row["bbox"] == pytest.approx([x, y, x + w, y + h])
        assert row["category_id"] == one["category_id"] - 1 and row["score"] == one["score"]


def test_without_truth_the_sheet_has_the_tags_alone(world, tmp_path, capsys):
    lines = ["file,tags,split"]
    for role, name in (("train", "trainval"), ("test", "test")):
        for r in open_tags(world[0], name).records:
            lines.append(f"{r.file_name},{';'.join(f'c{tag}' for tag in r.tags)},{role}")
    (tmp_path / "images").symlink_to(world[0] / "JPEGImages")
    (tmp_path / "tags.csv").write_text("\n".join(lines) + "\n")
    train = open_tags(tmp_path, "train")
    one = train.records[0]
    category = train.category_ids[one.tags[0]]
    found = {"image_id": one.image_id, "category_id": category, "bbox": [1, 1, 9, 9], "score": 0.5}
    (tmp_path / "found.json").write_text(json.dumps([found]))
    assert run((tmp_path, tmp_path / "found.json"), tmp_path / "pgt.json") == 0
    sheet = json.loads((tmp_path / "pgt.sheet.json").read_text())
    tags = sum(len(record.tags) for record in train.records)
    assert "truth" not in sheet and sheet["tags"]["without_box"] == tags - 1
    assert sheet["tags"]["score"] == [0.5] * 3 and "recall" not in capsys.readouterr().out


def test_detections_of_another_data_set_are_refused(world, tmp_path, capsys):
    (tmp_path / "other.json").write_text(
        json.dumps([{"image_id": "009999", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}])
    )
    assert run((world[0], tmp_path / "other.json"), tmp_path / "pgt.json") == 2
    assert str(tmp_path / "other.json") in capsys.readouterr().err
    assert not (tmp_path / "pgt.json").exists()
