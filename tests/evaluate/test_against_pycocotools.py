"""Random small sets with one field changed: the figures of pycocotools, or a line that names it."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from folders import write_coco
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from experiments.evaluate import main
from weaksam_jax.cli import entry_point

HEIGHT, WIDTH, IMAGES = 30, 40, 3
# What no field means, but text fields a few of them.
JUNK = [
    None,
    True,
    -1,
    0.5,
    1.5,
    10**20,
    10**400,
    "",
    "x",
    "5x",
    "None",
    [],
    [1],
    [[]],
    {},
    {"a": 1},
]
JUNK += [float("nan"), float("inf"), "9" * 30, [None] * 4, ["1", "2", "a", "4"], [[1, 2, 3]]]
FIELDS = {
    "images": ["id", "file_name", "width", "height"],
    "categories": ["id", "name"],
    "annotations": ["image_id", "category_id", "bbox", "iscrowd", "segmentation"],
    "": ["image_id", "category_id", "bbox", "score", "segmentation"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A COCO folder with its photographs; each example writes the JSON anew."""
    root = tmp_path_factory.mktemp("mutants")
    truth, _ = random_set(np.random.default_rng(0))
    write_coco(root / "coco", truth, "instances_train")
    for image in (root / "coco" / "images").iterdir():
        Image.new("RGB", (WIDTH, HEIGHT)).save(image)
    return root


def random_set(rng):
    """(annotation file, results): boxes with their rectangles as masks, some results near them."""
    images = [{"id": i, "file_name": f"im{i}.jpg", "width": WIDTH, "height": HEIGHT}
              for i in range(1, IMAGES + 1)]  # fmt: skip
    categories = [{"id": 3, "name": "ant"}, {"id": 8, "name": "bee"}]
    rows, found = [], []
    for number in range(1, 7):
        x, y = (int(one) for one in rng.integers(0, 18, 2))
        w, h = (int(one) for one in rng.integers(4, 12, 2))
        where = {"image_id": int(rng.integers(1, IMAGES + 1)),
                 "category_id": int(rng.choice([3, 8]))}  # fmt: skip
        crowd = int(rng.random() < 0.1)
        rows.append({"id": number, **where, **shape(x, y, w, h), "area": w * h, "iscrowd": crowd})
        for _ in range(2):
            moved = x + int(rng.integers(0, 3)), y + int(rng.integers(0, 3)), w, h
            found.append({**where, **shape(*moved), "score": round(float(rng.random()), 6)})
    return {"images": images, "annotations": rows, "categories": categories}, found


def shape(x, y, w, h):
    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {"bbox": [x, y, w, h], "segmentation": [corners]}


def run(folder, truth, found, metric):
    """(exit status, its one line or the figures)."""
    (folder / "coco/annotations/instances_train.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(found))
    flags = ["--data", str(folder / "coco"), "--detections", str(folder / "found.json")]
    flags += ["--split", "train", "--metric", metric, "--json", str(folder / "out.json")]
    with (
        contextlib.redirect_stderr(io.StringIO()) as said,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        status = entry_point(main, flags)
    return status, json.loads((folder / "out.json").read_text()) if not status else said.getvalue()


def by_pycocotools(folder, truth, found, kind):
    """[AP, AP50, AP75] in percent."""
    with contextlib.redirect_stdout(io.StringIO()):
        path = folder / "oracle.json"
        path.write_text(json.dumps(truth))
        coco = COCO(str(path))
        known = ["image_id", "category_id", "score", "bbox", *["segmentation"] * (kind == "segm")]
        found = [{key: value for key, value in one.items() if key in known} for one in found]
        evaluation = COCOeval(coco, coco.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * max(float(value), 0) for value in evaluation.stats[:3]]


def agree(folder, truth, found, oracle):
    for metric, kind in (("coco", "bbox"), ("coco-segm", "segm")):
        status, figures = run(folder, truth, found, metric)
        assert status == 0, figures
        want = by_pycocotools(folder, *oracle, kind)
        assert [figures[name] for name in ("ap", "ap50", "ap75")] == pytest.approx(want, abs=1e-6)


seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@settings(max_examples=8)
@given(seeds)
def test_whole_sets_are_those_of_pycocotools(folder, rng):
    truth, found = random_set(rng)
    agree(folder, truth, found, (truth, found))


def pick(rng, truth, found):
    """(list name, the row to change, its place, the field)."""
    name = str(rng.choice(list(FIELDS)))
    rows = truth[name] if name else found
    place = int(rng.integers(len(rows)))
    return name, rows[place], place, str(rng.choice(FIELDS[name]))


def other_ways(value):
    """What means the same."""
    if isinstance(value, str):
        return [f" {value} "] if not value.endswith(".jpg") else [f"./{value}"]
    if isinstance(value, list) and isinstance(value[0], list):
        return [[[str(one) for one in value[0]]], [[float(one) for one in value[0]]]]
    if isinstance(value, list):
        return [[str(one) for one in value], [float(one) for one in value]]
    return [str(value), float(value), f" {value}"]


@settings(max_examples=30)
@given(seeds)
def test_a_value_written_otherwise_changes_no_figure(folder, rng):
    truth, found = random_set(rng)
    oracle = copy.deepcopy((truth, found))
    _, row, _, field = pick(rng, truth, found)
    ways = other_ways(row[field])
    row[field] = ways[int(rng.integers(len(ways)))]
    agree(folder, truth, found, oracle)


@settings(max_examples=25)
@given(seeds)
def test_another_valid_value_gives_the_figures_of_pycocotools(folder, rng):
    truth, found = random_set(rng)
    row = [*truth["annotations"], *found][int(rng.integers(18))]
    x, y, w, h = (int(one) for one in rng.integers(1, 15, 4))
    change = [{"category_id": int(rng.choice([3, 8]))}, {"image_id": int(rng.integers(1, 4))},
              shape(x, y, w, h), {"caption": "x", "keypoints": [1, 2, 2]}]  # fmt: skip
    change += [{"score": 1.0}] if "score" in row else [{"iscrowd": 1}]
    row.update(change[int(rng.integers(len(change)))])
    agree(folder, truth, found, (truth, found))


@settings(max_examples=100)
@given(seeds, st.sampled_from(range(len(JUNK))))
def test_junk_is_refused_with_the_entry_named_or_means_what_it_says(folder, rng, junk):
    truth, found = random_set(rng)
    before = copy.deepcopy((truth, found))
    name, row, place, field = pick(rng, truth, found)
    row[field] = JUNK[junk]
    status, said = run(folder, truth, found, "coco-segm")
    harmless = JUNK[junk] is None and (name, field) in [
        ("images", "width"), ("images", "height"), ("annotations", "iscrowd")]  # fmt: skip
    if harmless or (field == "bbox" and JUNK[junk] is None):  # then it is that of the mask
        agree(folder, truth, found, before)
    elif status == 0:  # a name, or a truth's object without mask
        assert (field, JUNK[junk]) in [("name", one) for one in JUNK if isinstance(one, str)] + [
            ("iscrowd", True), ("score", -1), ("score", 0.5), ("score", 1.5), ("score", 10**20),
            ("score", "9" * 30), ("segmentation", None), ("segmentation", []), ("name", -1),
            ("name", 10**20), ("name", 10**400)]  # fmt: skip
    else:
        assert status == 2 and said.count("\n") == 1
        entry = f"{name}[{place}]" if name else f"entry {place}"
        named = entry in said or f"[{place}].{field}" in said
        dangling = name in ("images", "categories") and field == "id"  # others refer to it
        missing = field == "file_name" and "coco/images/" in said  # names the image
        assert named or dangling or missing, said


@settings(max_examples=30)
@given(seeds)
def test_a_missing_field_is_refused_with_the_entry_named(folder, rng):
    truth, found = random_set(rng)
    before = copy.deepcopy((truth, found))
    name, row, place, field = pick(rng, truth, found)
    del row[field]
    status, said = run(folder, truth, found, "coco-segm")
    if field in ("width", "height", "iscrowd", "bbox") and not status:
        if field != "iscrowd" or not before[0]["annotations"][place]["iscrowd"]:
            assert said == run(folder, *before, "coco-segm")[1]
    elif (name, field) != ("annotations", "segmentation"):
        entry = f"{name}[{place}]" if name else f"entry {place}"
        assert status == 2 and f"{entry}: has no {field}" in said.replace(
            f" (id {row.get('id')})", ""
        )
