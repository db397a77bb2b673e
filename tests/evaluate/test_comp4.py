"""Files for the VOC server: read back as the devkit reads them, and without any annotation."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments.evaluate import main
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags, open_truth
from weaksam_jax.data.formats.voc import VOC_CLASSES
from weaksam_jax.evaluate import voc_ap, write_comp4

NAMES = ("2008_000008", "2008_000002", "2009_000013")
OBJECT = (
    "<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


@pytest.fixture
def data(tmp_path):
    """VOC2012 with a training image and a test split of three images, all annotated."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("2010_000001\n")
    (root / "ImageSets" / "Main" / "test.txt").write_text("\n".join(NAMES))
    rng = np.random.default_rng(0)
    for name in ("2010_000001", *NAMES):
        Image.new("RGB", (60, 50)).save(root / "JPEGImages" / f"{name}.jpg")
        corners = rng.integers(1, 25, (3, 2))
        rows = np.concatenate([corners, corners + rng.integers(5, 20, (3, 2))], 1)
        text = "".join(OBJECT.format("cat" if i else "dog", *row) for i, row in enumerate(rows))
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{text}</annotation>")
    return root


def without_annotations(root):
    for name in NAMES:
        (root / "Annotations" / f"{name}.xml").unlink()


def detections(data, count=60):
    """Boxes near the true ones, as detect_wsod writes them, with scores that three decimals tie."""
    rng, found, truth = np.random.default_rng(1), [], open_truth(data, "test")
    for _ in range(count):
        record = truth.records[rng.integers(len(NAMES))]
        place = rng.integers(len(record.boxes))
        x1, y1, x2, y2 = record.boxes[place] + rng.uniform(-3, 3, 4)
        score = float(f"{np.float32(0.0104 + rng.random() * 1e-4):.9g}")
        bbox = [round(float(v), 2) for v in (x1, y1, x2 - x1, y2 - y1)]
        category = truth.category_ids[record.labels[place]]
        found.append(
            {"image_id": record.image_id, "category_id": category, "bbox": bbox, "score": score}
        )
    return found


def read_back(folder, split, classes):
    """The devkit's reading: columns, the inclusive 1-based corners to COCO results."""
    found = []
    for label, name in enumerate(classes):
        for row in (folder / f"comp4_det_{split}_{name}.txt").read_text().splitlines():
            image, *numbers = row.split(" ")
            score, left, top, right, bottom = map(float, numbers)
            bbox = [left - 1, top - 1, right - left + 1, bottom - top + 1]
            found.append((int(image.replace("_", "")), label + 1, score, *bbox))
    return found


def test_files_read_back_are_the_detections(data, tmp_path):
    found, truth = detections(data), open_truth(data, "test")
    assert len({round(one["score"], 3) for one in found}) < 3
    paths = write_comp4(found, truth, tmp_path / "out")
    assert len(paths) == 20 and all(path.exists() for path in paths)
    assert not (tmp_path / "out" / "comp4_det_test_tvmonitor.txt").read_text()
    again = read_back(tmp_path / "out", "test", truth.classes)
    given = [(d["image_id"], d["category_id"], d["score"], *d["bbox"]) for d in found]
    given.sort(key=lambda row: (row[1], -row[2]))
    for mine, row in zip(given, again, strict=True):
        assert mine[:3] == row[:3]  # the score to the last digit
        np.testing.assert_allclose(mine[3:], row[3:], atol=1e-6)
    results = [
        {"image_id": i, "category_id": c, "score": s, "bbox": bbox} for i, c, s, *bbox in again
    ]
    assert voc_ap(results, truth) == voc_ap(found, truth)


def test_a_box_of_whole_pixels_by_hand(data, tmp_path):
    """The whole image of 60 x 50 is 1 1 60 50 for the server."""
    one = {"image_id": 2008000002, "category_id": 12, "bbox": [0, 0, 60, 50], "score": 0.25}
    write_comp4([one], open_truth(data, "test"), tmp_path)
    text = (tmp_path / "comp4_det_test_dog.txt").read_text()
    assert text == "2008_000002 0.25 1 1 60 50\n"


def test_a_test_set_without_annotations(data, tmp_path, capsys):
    found = detections(data)
    path = tmp_path / "found.json"
    path.write_text(json.dumps(found))
    flags = ["--detections", str(path), "--data", str(data), "--split", "test"]
    assert entry_point(main, [*flags, "--voc-files", str(tmp_path / "a")]) == 0
    without_annotations(data)
    assert entry_point(main, [*flags, "--voc-files", str(tmp_path / "b")]) == 0
    assert "20 files such as" in capsys.readouterr().out
    for name in VOC_CLASSES:
        file = f"comp4_det_test_{name}.txt"
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert entry_point(main, [*flags, "--metric", "voc12"]) == 2
    assert "no truth to compare with" in capsys.readouterr().err
    assert entry_point(main, flags) == 2
    assert capsys.readouterr().err.startswith("error: --metric: is missing")
    path.write_text(json.dumps([found[0] | {"image_id": 5}]))
    assert entry_point(main, [*flags, "--voc-files", str(tmp_path / "c")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: entry 0: image_id 5, which")


def test_a_test_split_is_opened_without_annotations(data):
    tagged = open_tags(data, "test")
    assert all(record.tags for record in tagged.records)
    without_annotations(data)
    images = open_tags(data, "test")
    assert [one.image_id for one in images.records] == [one.image_id for one in tagged.records]
    assert images.classes == tagged.classes and images.category_ids == tagged.category_ids
    assert not any(record.tags for record in images.records)
    assert open_truth(data, "test") is None
