"""`python -m experiments.pgt`: both formats, both sheets, refusals."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from tiny_pipeline import options, write_run

from experiments.pgt import main
from experiments.pipeline.run import open_run
from experiments.pipeline.stages import make_pseudo_boxes
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags, open_truth
from weaksam_jax.data.detections import BadDetections, as_arrays
from weaksam_jax.data.mini_set import write_mini
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.pgt import PgtConfig


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
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


def run(toy, out, *more):
    flags = ["--detections", str(toy[1]), "--data", str(toy[0]), "--out", str(out), *more]
    return entry_point(main, flags)


def test_the_truth_is_found_and_its_parts_fall(toy, tmp_path, capsys):
    assert run(toy, tmp_path / "pgt.json") == 0
    assert "missed" in capsys.readouterr().out
    sheet = json.loads((tmp_path / "pgt.sheet.json").read_text())
    tags, truth = open_tags(toy[0], "trainval"), open_truth(toy[0], "trainval")
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


def test_the_picture_shows_pseudo_boxes_where_they_are(toy, tmp_path):
    """Without a score threshold the lower box of each object is drawn, too: other pixels."""
    pictures = []
    every = ("--rule", "pgf", "--score-threshold", "0", "--nested")
    for more in ((), (*every, *open_tags(toy[0], "trainval").classes)):
        assert run(toy, tmp_path / "pgt.json", *more) == 0
        pictures.append(np.asarray(Image.open(tmp_path / "pgt.png").convert("RGB")).astype(int))
    assert pictures[0].shape == pictures[1].shape
    changed = (pictures[0] != pictures[1]).any(-1).mean()
    assert 0.001 < changed < 0.5


PGF = ("bottle", "bus", "car", "chair", "cow", "pottedplant", "sheep")
RULES = {  # flags: rule, tau_s and classes without the overlap test that they come to
    "": ("paper", 0.3, ()),
    "rule pgf": ("pgf", 0.2, PGF),
    "rule=pgf score-threshold 0.4": ("pgf", 0.4, PGF),
    "rule pgf nested person": ("pgf", 0.2, ("person",)),
    "rule official_voc": ("official_voc", 0.3, ()),
    "score-threshold 0.5": ("paper", 0.5, ()),
}


def flags_of(text, prefix):
    return [f"{prefix}{word}" if word[:4] in ("rule", "scor", "nest") else word
            for word in text.split()]  # fmt: skip


@pytest.mark.parametrize("text", RULES)
def test_the_rule_brings_its_own_thresholds(toy, tmp_path, text):
    rule, threshold, nested = RULES[text]
    if nested == ("person",):
        nested = open_tags(toy[0], "trainval").classes[:1]
        text = text.replace("person", nested[0])
    assert run(toy, tmp_path / "pgt.json", *flags_of(text, "--")) == 0
    used = json.loads((tmp_path / "pgt.sheet.json").read_text())["rule"]
    assert (used["rule"], used["score_threshold"]) == (rule, threshold)
    assert used["nested"] == list(nested)


@pytest.mark.parametrize("text", RULES)
@pytest.mark.parametrize("preset", ["mini", "light", "voc07"])
def test_in_the_pipeline_a_presets_threshold_is_for_its_own_rule(preset, text):
    """The mini preset's 0.8 is a figure of the paper's rule and not of another one."""
    rule, threshold, nested = RULES[text]
    if preset == "mini" and not text:
        threshold = 0.8
    flags = ["--data", "mini", "--preset", preset, *flags_of(text, "--pgt.")]
    made = options(*flags, job="voc07").settings.pgt
    assert made == PgtConfig(rule, threshold, nested=nested)


def test_the_mini_presets_rule_named_keeps_its_threshold():
    made = options("--data", "mini", "--pgt.rule", "paper").settings.pgt
    assert made == PgtConfig(score_threshold=0.8, nested=())


def test_the_pipelines_top_1_is_one_box_whatever_k_is(toy, tmp_path):
    data, path = toy
    (tmp_path / "wsod").mkdir()
    shutil.copy(path, tmp_path / "wsod" / "detections_train.json")
    write_run(tmp_path, data, pgt=PgtConfig(rule="top_k", k=2))
    make_pseudo_boxes(open_run(tmp_path))
    most = {}
    for name in ("pgt", "top1"):
        made = json.loads((tmp_path / "pgt" / f"{name}.json").read_text())["annotations"]
        most[name] = Counter((one["image_id"], one["category_id"]) for one in made)
    assert set(most["top1"].values()) == {1} and max(most["pgt"].values()) == 2
    assert most["top1"].keys() == most["pgt"].keys()


def test_voc_dict_has_every_image_and_corners(toy, tmp_path):
    assert run(toy, tmp_path / "coco.json") == 0
    assert run(toy, tmp_path / "dict.json", "--format", "voc-dict") == 0
    made = json.loads((tmp_path / "dict.json").read_text())
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert set(made) == {str(image["id"]) for image in coco["images"]}
    rows = [row for rows in made.values() for row in rows]
    assert len(rows) == len(coco["annotations"])
    for row, one in zip(rows, coco["annotations"], strict=True):
        x, y, w, h = one["bbox"]
        assert row["bbox"] == pytest.approx([x, y, x + w, y + h])
        assert row["category_id"] == one["category_id"] - 1 and row["score"] == one["score"]


def test_without_truth_the_sheet_has_the_tags_alone(toy, tmp_path, capsys):
    lines = ["file,tags,split"]
    for role, name in (("train", "trainval"), ("test", "test")):
        for r in open_tags(toy[0], name).records:
            lines.append(f"{r.file_name},{';'.join(f'c{tag}' for tag in r.tags)},{role}")
    (tmp_path / "images").symlink_to(toy[0] / "JPEGImages")
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
    assert sheet["tags"]["boxes_per_image"] == 1 / len(train.records)
    said = capsys.readouterr().out
    assert sheet["tags"]["score"] == [0.5] * 3 and "recall" not in said
    columns, everything = (line.split() for line in said.splitlines()[:2])
    assert columns[3:5] == ["per", "image"]
    per_image = f"{1 / len(train.records):.2f}"
    assert everything[:4] == ["all", str(tags), "1", per_image]
    assert everything[4] == f"{1 / tags:.2f}"
    by_class = {line.split()[0]: line.split() for line in said.splitlines()[2:]}
    assert by_class[train.classes[one.tags[0]]][3] == per_image
    assert all(row[3] == "0.00" for row in by_class.values() if row[2] == "0")


def test_detections_of_another_data_set_are_refused(toy, tmp_path, capsys):
    (tmp_path / "other.json").write_text(
        json.dumps([{"image_id": "009999", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}])
    )
    assert run((toy[0], tmp_path / "other.json"), tmp_path / "pgt.json") == 2
    assert str(tmp_path / "other.json") in capsys.readouterr().err
    assert not (tmp_path / "pgt.json").exists()


def entry(**values):
    return {"image_id": "{name}", "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5} | values


def without(key):
    return {name: value for name, value in entry().items() if name != key}


FAULTS = {
    "has no score": without("score"),
    "has no bbox": without("bbox"),
    "is no object": [5, None, "a", [entry()]],
    "has no image_id": without("image_id"),
    "score is no": [entry(score=value) for value in ("good", None, True, [1], 10**400)],
    "bbox is no": [
        entry(bbox=[0, 0, 5, value]) for value in ("a", None, [1], True, 10**400)
    ] + [entry(bbox=value) for value in (["a"], [1, 2, 3], "abcd", None, {})],
    "image_id is": [
        entry(image_id=value) for value in ([1], {}, None, 1.5, True, -1, 2**63, 10**400)
    ],
    "category_id is": [entry(category_id=value) for value in ([1], {"a": 1}, None, "one", 1.5)],
    "1].score is NaN": entry(score=np.nan),
    "1].bbox[2] is -Infinity": entry(bbox=[0, 0, -np.inf, 1]),
}  # fmt: skip
CASES = [(text, one) for text, some in FAULTS.items()
         for one in (some if isinstance(some, list) else [some])]  # fmt: skip


@pytest.mark.parametrize(("text", "bad"), CASES)
def test_faulty_detections_are_one_line_that_names_file_and_entry(toy, tmp_path, capsys, text, bad):
    good, path = json.loads(toy[1].read_text())[0], tmp_path / "bad.json"
    if isinstance(bad, dict) and bad.get("image_id") == "{name}":
        bad = {**bad, "image_id": good["image_id"]}
    path.write_text(json.dumps([good, bad]))
    assert run((toy[0], path), tmp_path / "pgt.json") == 2
    said = capsys.readouterr().err.splitlines()
    (said,) = said
    assert said.startswith((f"error: {path}: entry 1", f"error: {path}: [1].")) and text in said
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--score-threshold", "nan"), "--score-threshold: is nan"),
        (("--score-threshold", "1.5"), "--score-threshold: is 1.5"),
        (("--overlap-threshold", "-0.5"), "--overlap-threshold: is -0.5"),
        (("--rule", "top_k", "--k", "0"), "--k: is 0"),
        (("--nested", "botle"), "setting nested"),
    ],
)
def test_bad_settings_are_one_line_before_anything_is_written(toy, tmp_path, capsys, flags, text):
    assert run(toy, tmp_path / "pgt.json", *flags) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"error: {text}")
    assert not any(tmp_path.iterdir())


def test_bad_settings_of_the_pipeline_are_refused_at_once(capsys):
    flags = ["--data", "mini", "--pgt.k", "0"]
    assert entry_point(lambda argv: options(*argv), flags) == 2
    assert capsys.readouterr().err.startswith("error: --pgt.k: is 0; ")


@pytest.mark.parametrize("name", ["x.png", "voc.2007", "x", "folder", "folder.json", "with.json"])
def test_an_output_that_cannot_be_is_refused(toy, tmp_path, capsys, name):
    for folder in ("folder", "folder.json", "with.png"):
        (tmp_path / folder).mkdir()
    assert run(toy, tmp_path / name) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"error: --out: {tmp_path / name.split('.')[0]}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "folder.json", "with.png"]


@pytest.mark.parametrize("out", ["found.json", "../found/found.json", "found.sheet.json"])
def test_the_input_is_not_overwritten(toy, tmp_path, capsys, out):
    folder = tmp_path / "found"
    folder.mkdir()
    path = folder / out.replace("../found/", "")
    path.write_text(toy[1].read_text())
    out = folder / out.replace(".sheet", "")
    assert run((toy[0], path), out) == 2
    assert "--detections" in capsys.readouterr().err
    assert path.read_text() == toy[1].read_text() and list(folder.iterdir()) == [path]


def test_a_broken_image_leaves_no_output(toy, tmp_path, capsys):
    data, out = tmp_path / "VOC2007", tmp_path / "pgt.json"
    shutil.copytree(toy[0], data)
    for path in (data / "JPEGImages").iterdir():  # whole headers: the size is still read
        path.write_bytes(path.read_bytes()[:-200])
    assert run((data, toy[1]), out) == 2
    assert "image cannot be read" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [data]


def named_split(tmp_path):
    names = {name: number for number, name in enumerate(
        ("cat.jpg", "b/dog.png", "2.jpg", "7_1.jpg", "two.jpg", "two.png"), 1)}  # fmt: skip
    names["2008_000001.jpg"] = 2008000001
    records = tuple(
        TagRecord(number, name, tmp_path / name, 9, 9, (0,)) for name, number in names.items()
    )
    return TagSplit("made up", "train", ("cat",), (1,), records)


def test_image_ids_may_be_file_names_of_any_data_set(tmp_path):
    train = named_split(tmp_path)
    wanted = {
        "cat.jpg": 1, "cat": 1, "b/dog.png": 2, "b/dog": 2, "2.jpg": 3, "7_1": 4,
        "two.jpg": 5, "two.png": 6, "5": 5, "000005": 5, "2008_000001": 2008000001, 4: 4,
        "6.0": 6, 1.0: 1,
    }  # fmt: skip
    found = [entry(image_id=name) for name in wanted]
    places = {record.image_id: place for place, record in enumerate(train.records)}
    assert as_arrays(found, train).image.tolist() == [places[i] for i in wanted.values()]
    assert [one["image_id"] for one in found] == list(wanted)  # the input stays as it is


@pytest.mark.parametrize(
    ("name", "fault"),
    [("two", "no image"), ("dog", "no image"), ("", "no image"), ("77", "train does not have"),
     ("2", "the name of image 3 and the id of another")],
)  # fmt: skip
def test_a_name_of_no_image_or_of_two_is_refused(tmp_path, name, fault):
    with pytest.raises(BadDetections, match=f"entry 1: image_id .*{fault}"):
        as_arrays([entry(image_id=1), entry(image_id=name)], named_split(tmp_path))


def test_file_names_as_image_ids_end_to_end(toy, tmp_path):
    """The same pseudo boxes whether images are numbers, names or file names."""
    made = []
    records = {r.file_name: r.image_id for r in open_tags(toy[0], "trainval").records}
    for form in (
        lambda name: name,
        lambda name: name + ".jpg",
        lambda name: records[name + ".jpg"],
    ):
        found = json.loads(toy[1].read_text())
        for one in found:
            one["image_id"] = form(one["image_id"])
        (tmp_path / "found.json").write_text(json.dumps(found))
        assert run((toy[0], tmp_path / "found.json"), tmp_path / "pgt.json") == 0
        made.append((tmp_path / "pgt.json").read_text())
    assert made[0] == made[1] == made[2] and len(json.loads(made[0])["annotations"])
