"""Results files as people have them, through `experiments.evaluate`: alike in every metric."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from folders import voc_object, write_coco, write_voc
from pycocotools import mask as coco_mask

from experiments.evaluate import main
from weaksam_jax.cli import entry_point

HEIGHT, WIDTH = 10, 20
SQUARE = [[2, 1, 8, 1, 8, 5, 2, 5]]
COUNTS = [21, *[4, 6] * 5, 4, 125]  # the same pixels
RLE = coco_mask.merge(coco_mask.frPyObjects(SQUARE, HEIGHT, WIDTH))["counts"].decode()
BOXES, MASKS = ("voc07", "voc12", "coco", "corloc", "recall"), ("voc-segm", "coco-segm")
GOOD = {"image_id": 1, "category_id": 1, "bbox": [2, 1, 6, 4], "score": 0.9, "segmentation": SQUARE}


def truth_json():
    """Three images; a cat in the first two, a dog in the third, all as the square."""
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in (1, 2, 3)
    ]
    rows = [{"id": i, "image_id": i, "category_id": 1 + (i == 3), "bbox": [2, 1, 6, 4],
             "iscrowd": 0, "area": 24, "segmentation": SQUARE} for i in (1, 2, 3)]  # fmt: skip
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return {"images": images, "annotations": rows, "categories": categories}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("results") / "coco", truth_json(), "instances_train")


def evaluate(data, tmp_path, rows, metric, raw=None):
    """Exit status; the figures stand in out.json."""
    (tmp_path / "found.json").write_bytes(json.dumps(rows).encode() if raw is None else raw)
    flags = ["--detections", str(tmp_path / "found.json"), "--data", str(data), "--split", "train"]
    return entry_point(main, [*flags, "--metric", metric, "--json", str(tmp_path / "out.json")])


def figures(data, tmp_path, rows, metrics=(*BOXES, *MASKS), raw=None):
    """The JSON of each metric."""
    found = []
    for metric in metrics:
        assert evaluate(data, tmp_path, rows, metric, raw=raw) == 0
        found.append(json.loads((tmp_path / "out.json").read_text()))
    return found


def changed(**values):
    return {key: value for key, value in {**GOOD, **values}.items() if value is not ...}


REFUSED = {
    "score is no finite number": [changed(score=v) for v in (None, True, "good", [0.9], {}, "nan")],
    "has no score": [changed(score=...)],
    "image_id is no integer": [changed(image_id=v) for v in (None, [1], {"$oid": "5f"}, True, 1.5)],
    "image_id is beyond 64 bits": [changed(image_id=v) for v in (2**64, 10**400)],
    "image_id is negative": [changed(image_id=-1)],
    "image_id is no image's id or name": [changed(image_id=v) for v in ("none.jpg", "", "1e0")],
    "which COCO/train does not have": [changed(image_id=9), changed(category_id=3),
                                       changed(image_id="9")],
    "has no image_id": [changed(image_id=...)],
    "category_id is no integer": [changed(category_id=v) for v in (None, [1], "cat", False, 0.5)],
    "has no category_id": [changed(category_id=...)],
    "bbox is no [": [changed(bbox=v) for v in ([1, 2, 3], "box", {}, [1, 2, 10**400, 4],
                                               [1, 2, None, 4], [1, 2, "x", 4], [[1], 2, 3, 4])],
    "bbox is inverted": [changed(bbox=[5, 5, -1, 2])],
    "bbox lies absurdly far": [changed(bbox=[5, 5, 1e300, 2])],
    "is no object": [None, 5, "a", [GOOD]],
    "segmentation has size": [changed(segmentation={"size": [2 * HEIGHT, 2 * WIDTH],
                                                    "counts": RLE}),
                              changed(segmentation={"counts": RLE})],
    "segmentation has counts that are no RLE code": [
        changed(segmentation={"size": [HEIGHT, WIDTH], "counts": "garbage!"})],
    "segmentation has counts that are neither": [
        changed(segmentation={"size": [HEIGHT, WIDTH], **more}) for more in ({}, {"counts": None})],
    "segmentation has runs of 199": [
        changed(segmentation={"size": [HEIGHT, WIDTH], "counts": [199]})],
    "segmentation is neither polygons nor RLE": [changed(segmentation=v) for v in ("text", 5, "")],
    "segmentation is no list of polygons": [changed(segmentation=SQUARE[0])],
    "segmentation has a corner more than": [changed(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]])],
    "segmentation has a polygon of 4": [changed(segmentation=[[0, 0, 9, 9]])],
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
@pytest.mark.parametrize("wrap", [list, lambda rows: {"annotations": rows}])
def test_every_metric_refuses_alike(data, tmp_path, capsys, message, wrap):
    where = "entry 1" if wrap is list else "annotations[1]"
    for bad in REFUSED[message]:
        said = set()
        for metric in (*BOXES, *MASKS):
            assert evaluate(data, tmp_path, wrap([GOOD, bad]), metric) == 2
            said.add(capsys.readouterr().err)
        (line,) = said
        assert line.startswith(f"error: {tmp_path / 'found.json'}: {where}: ") and message in line
        assert line.count("\n") == 1 and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("value", [..., None, []])
def test_a_result_without_mask_has_no_mask_metric(data, tmp_path, capsys, value):
    assert figures(data, tmp_path, [changed(segmentation=value)], BOXES)
    (tmp_path / "out.json").unlink()
    for metric in MASKS:
        assert evaluate(data, tmp_path, [GOOD, changed(segmentation=value)], metric) == 2
        assert "entry 1: has no segmentation" in capsys.readouterr().err


RAW = {b"": "is empty", b"5": "is no COCO results file", b"{}": "is no COCO results file",
       b'{"5": []}': "is no COCO results file", b"[" * 10**5: "nested too deeply",
       b"\x80\x04]": "is not UTF-8", b"[{}]": "entry 0: has no image_id",
       json.dumps([GOOD]).replace("0.9", "NaN").encode(): "[0].score is NaN",
       json.dumps([GOOD]).replace("0.9", "1e400").encode(): "entry 0: score is no"}  # fmt: skip


@pytest.mark.parametrize("raw", RAW, ids=RAW.values())
def test_files_that_are_no_results(data, tmp_path, capsys, raw):
    for metric in ("voc07", "coco", "coco-segm"):
        assert evaluate(data, tmp_path, None, metric, raw=raw) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {tmp_path / 'found.json'}: ") and RAW[raw] in line


def test_the_figures_are_those_of_one_cat_of_two(data, tmp_path):
    found = dict(zip((*BOXES, *MASKS), figures(data, tmp_path, [GOOD]), strict=True))
    assert found["voc07"]["ap50"] == pytest.approx(100 * 6 / 11 / 2)
    assert found["voc12"]["ap50"] == found["corloc"]["corloc"] == 25
    assert found["recall"]["recall"]["0.50"] == pytest.approx(1 / 3)
    # COCO's 101 points of recall: 51 of them up to 1/2; the dog has none.
    assert found["coco"]["ap50"] == pytest.approx(100 * 51 / 101 / 2)
    assert found["coco-segm"]["ap"] == found["coco"]["ap"]
    assert found["voc-segm"]["ap50"] == found["voc-segm"]["ap75"] == 25


CLEAR = {
    "text": changed(image_id="1", category_id="1", score="0.9", bbox=["2", "1", "6", "4"]),
    "floats": changed(image_id=1.0, category_id=1.0),
    "name": changed(image_id="1.jpg"),
    "runs": changed(segmentation={"size": [HEIGHT, WIDTH], "counts": COUNTS}),
    "code": changed(segmentation={"size": [HEIGHT, WIDTH], "counts": RLE}),
    "no box": changed(bbox=...),
    "null box": changed(bbox=None),
    "caption": changed(caption="a cat", keypoints=[], id=7, area="none", iscrowd=None),
}


@pytest.mark.parametrize("name", CLEAR)
@pytest.mark.parametrize("more", [[], [changed(image_id=2, score=0.5, bbox=[0, 0, 5, 5])]])
def test_what_is_clear_gives_the_same_figures(data, tmp_path, name, more):
    want = figures(data, tmp_path, [GOOD, *more])
    assert figures(data, tmp_path, [CLEAR[name], *more]) == want
    assert figures(data, tmp_path, {"annotations": [*more, CLEAR[name]]}) == want


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_results_with_a_byte_order_mark(data, tmp_path, encoding):
    raw = json.dumps([GOOD]).encode(encoding)
    assert figures(data, tmp_path, None, raw=raw) == figures(data, tmp_path, [GOOD])


def test_class_names_on_an_ascii_stdout(tmp_path):
    splits = {
        name: {"a" if name == "test" else "b": [voc_object("猫")]} for name in ("trainval", "test")
    }
    data, path = write_voc(tmp_path / "data", splits), tmp_path / "found.json"
    path.write_text("[]")
    command = [sys.executable, "-m", "experiments.evaluate", "--data", str(data), "--metric"]
    done = subprocess.run(
        [*command, "voc07", "--split", "test", "--detections", str(path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "") and "\\u732b" in done.stdout


def test_a_mask_on_an_image_without_objects_is_wrong_as_its_box_is(tmp_path):
    truth = truth_json()
    truth["images"].append({"id": 4, "file_name": "4.jpg", "width": WIDTH, "height": HEIGHT})
    data = write_coco(tmp_path / "coco", truth, "instances_train")
    found = [changed(image_id=4, score=0.95), GOOD]
    named = dict(zip((*BOXES, *MASKS), figures(data, tmp_path, found), strict=True))
    assert named["voc-segm"]["ap50"] == named["voc12"]["ap50"] == 12.5
    assert named["coco-segm"]["ap"] == pytest.approx(named["coco"]["ap"]) and named["coco"]["ap"]
    assert named["coco-segm"]["masked_images"] == 4
