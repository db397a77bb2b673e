"""`python -m experiments.evaluate` on a small VOC folder with masks, and AP of masks on its own."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from experiments.evaluate import main
from weaksam_jax.boxes import to_xywh
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_truth
from weaksam_jax.data.masks import encode_mask
from weaksam_jax.data.records import TruthRecord, TruthSplit
from weaksam_jax.data.store import Proposals, write_manifest, write_proposals
from weaksam_jax.evaluate import coco_ap, only_masked, voc_mask_ap

OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)
# Image -> (class, difficult, 1-based inclusive corners); 000004 has no mask file.
OBJECTS = {
    "000001": [("dog", 0, 1, 1, 10, 10), ("cat", 0, 21, 11, 30, 30)],
    "000002": [("dog", 0, 5, 5, 24, 24), ("dog", 1, 30, 1, 39, 10)],
    "000003": [("cat", 0, 2, 2, 11, 21)],
    "000004": [("cat", 0, 2, 2, 11, 21)],
}


@pytest.fixture
def data(tmp_path):
    """A VOC folder with trainval = test, all object masks being full boxes."""
    root = tmp_path / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    for split in ("trainval", "test"):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(OBJECTS))
    for name, objects in OBJECTS.items():
        Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{name}.jpg")
        text = "".join(OBJECT.format(*one) for one in objects)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{text}</annotation>")
        pixels = np.zeros((30, 40), np.uint8)
        for number, (_, _, x1, y1, x2, y2) in enumerate(objects, 1):
            pixels[y1 - 1 : y2, x1 - 1 : x2] = number
        if name != "000004":
            mask = Image.fromarray(pixels, "P")
            mask.putpalette([shade for shade in range(256) for _ in "RGB"])
            mask.save(root / "SegmentationObject" / f"{name}.png")
    return root


def rectangle(x1, y1, x2, y2):
    mask = np.zeros((30, 40), bool)
    mask[y1:y2, x1:x2] = True
    return encode_mask(mask)


def result(image, category, box, score):
    return {
        "image_id": image,
        "category_id": category,
        "bbox": to_xywh(np.asarray(box, float)).tolist(),
        "score": score,
        "segmentation": rectangle(*box),
    }


@pytest.fixture
def found(tmp_path, data):
    """One dog right, one wrong before it, the difficult one found; cats: one of three, late."""
    cat, dog = 8, 12  # their places among VOC's twenty
    results = [
        result(3, dog, (0, 0, 5, 5), 0.95),
        result(1, dog, (0, 0, 10, 10), 0.9),
        result(2, dog, (29, 0, 39, 10), 0.85),
        result(3, cat, (1, 1, 11, 15), 0.8),
        result(4, cat, (20, 20, 30, 30), 0.7),
    ]
    path = tmp_path / "found.json"
    path.write_text(json.dumps(results))
    return path


def evaluate(found, data, metric, tmp_path, *more):
    out = tmp_path / "out.json"
    flags = ["--detections", str(found), "--data", str(data), "--metric", metric]
    assert entry_point(main, [*flags, "--json", str(out), *more]) == 0
    return json.loads(out.read_text())


def test_voc_metrics_are_those_counted_by_hand(found, data, tmp_path, capsys):
    # dog: wrong, right, (difficult: ignored) of 2 -> precision 1/2 up to recall 1/2.
    # cat: right (IoU .7), wrong, of 3 -> precision 1 up to recall 1/3.
    voc07 = evaluate(found, data, "voc07", tmp_path)
    assert voc07["per_class"] == pytest.approx({"cat": 100 * 4 / 11, "dog": 50 * 6 / 11})
    assert voc07["split"] == "test" and voc07["images"] == 4
    assert "dog" in capsys.readouterr().out
    voc12 = evaluate(found, data, "voc12", tmp_path)
    assert voc12["per_class"] == pytest.approx({"cat": 100 / 3, "dog": 25})
    assert voc12["ap50"] == pytest.approx((100 / 3 + 25) / 2)
    # Images with a dog: 1 (hit), 2 (the difficult one is hit); with a cat: 1 no, 3 hit, 4 no.
    located = evaluate(found, data, "corloc", tmp_path)
    assert located["per_class"] == pytest.approx({"dog": 100, "cat": 100 / 3})
    # A pixel off, the dogs still have IoU 81 / 119, the cat 117 / 223.
    assert located["corloc_official"] == pytest.approx((100 + 100 / 3) / 2)
    assert located["split"] == "trainval"


def test_mask_metrics_leave_out_the_image_without_masks(found, data, tmp_path):
    segm = evaluate(found, data, "voc-segm", tmp_path)
    assert segm["masked_images"] == 3
    # cat: one of 2 objects with a mask, IoU .7; the wrong one is on the image left out.
    assert segm["per_class"] == pytest.approx({"cat": 50, "dog": 25})
    assert segm["ap50"] == segm["ap25"] == segm["ap70"] == pytest.approx(37.5)
    assert segm["ap75"] == pytest.approx(12.5)
    coco = evaluate(found, data, "coco-segm", tmp_path)
    results, truth = only_masked(json.loads(found.read_text()), open_truth(data, "test"))
    assert coco["ap"] == coco_ap(results, truth, "segm")["ap"] and coco["masked_images"] == 3


def test_recall_of_results_and_of_a_store_agree(found, data, tmp_path, capsys):
    of_results = evaluate(found, data, "recall", tmp_path)
    # 6 objects, difficult ones included: two found exactly, one with IoU .7.
    want = {"0.50": 3 / 6, "0.75": 2 / 6, "0.90": 2 / 6}
    assert of_results["recall"] == pytest.approx(want)
    assert "4 images, difficult objects count\n" in capsys.readouterr().out
    store = tmp_path / "store"
    results = json.loads(found.read_text())
    for image in range(1, 5):
        own = [one for one in results if one["image_id"] == image]
        boxes = np.asarray([one["bbox"] for one in own], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        zeros = np.zeros(len(own))
        masks = tuple(one["segmentation"]["counts"].encode() for one in own)
        one = Proposals(image, 30, 40, boxes, zeros, zeros, zeros, zeros, zeros, masks)
        write_proposals(store, "trainval", one, {})
    write_manifest(store, "trainval", range(1, 5), {})
    of_store = evaluate(store, data, "recall", tmp_path)
    assert of_store["recall"] == of_results["recall"]
    # 5 objects have masks; the boxes' counts hold for them too.
    assert of_store["mask_recall"] == pytest.approx({"0.50": 0.6, "0.75": 0.4, "0.90": 0.4})
    # Without the difficult one: one of 5 found exactly, one with IoU .7.
    want = {"0.50": 2 / 5, "0.75": 1 / 5, "0.90": 1 / 5}
    for place in (found, store):
        got = evaluate(place, data, "recall", tmp_path, "--no-difficult")
        assert got["recall"] == pytest.approx(want) and got["difficult"] is False
    assert "4 images, difficult objects do not count\n" in capsys.readouterr().out


def test_difficult_objects_are_a_question_of_recall_alone(found, data, capsys):
    flags = ["--detections", str(found), "--data", str(data), "--metric", "voc07"]
    assert entry_point(main, [*flags, "--no-difficult"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --no-difficult: has no meaning for --metric voc07")


@pytest.mark.parametrize(
    ("spoil", "metric", "message"),
    [
        (
            lambda one: one.update(image_id=77),
            "voc07",
            "entry 0: image_id 77, which VOC2007/test does not have",
        ),
        (lambda one: one.pop("segmentation"), "voc-segm", "entry 0: has no segmentation"),
        (lambda one: one.update(bbox=[1, 2]), "coco", "entry 0: bbox is no ["),
    ],
)
def test_bad_results_end_in_one_line(spoil, metric, message, found, data, capsys):
    results = json.loads(found.read_text())
    spoil(results[0])
    found.write_text(json.dumps(results))
    flags = ["--detections", str(found), "--data", str(data), "--metric", metric]
    assert entry_point(main, flags) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith(f"error: {found}: ") and message in error[0]


def test_a_data_set_of_tags_alone_has_no_metric(found, tmp_path, capsys):
    root = tmp_path / "tagged"
    (root / "images").mkdir(parents=True)
    for name in "ab":
        Image.new("RGB", (40, 30)).save(root / "images" / f"{name}.jpg")
    (root / "tags.csv").write_text("file,tags,split\na.jpg,dog,train\nb.jpg,dog,test\n")
    flags = ["--detections", str(found), "--data", str(root), "--metric", "voc07"]
    assert entry_point(main, flags) == 2
    assert f"error: {root}: has tags only" in capsys.readouterr().err


def random_masks(seed):
    """A truth of random rectangles as masks, and detections that are such rectangles moved."""
    rng = np.random.default_rng(seed)
    records, found = [], []
    for image in range(1, 6):
        corner = rng.integers(0, 15, (4, 2))
        boxes = np.concatenate([corner, corner + rng.integers(5, 15, (4, 2))], 1)
        labels, flags = rng.integers(0, 2, 4).astype(np.int32), np.zeros(4, bool)
        masks = tuple(rectangle(*box) for box in boxes)
        boxes = boxes.astype(np.float32)
        records.append(
            TruthRecord(image, f"{image}.jpg", None, 40, 30, boxes, labels, flags, flags, masks)
        )
        for _ in range(8):
            box = boxes[rng.integers(4)].astype(int) + rng.integers(-2, 3, 4)
            box = np.clip(box, 0, 30)
            if (box[2:] > box[:2]).all():
                found.append(result(image, int(rng.integers(1, 3)), box, float(rng.random())))
    return found, TruthSplit("made up", "test", ("ant", "bee"), (1, 2), tuple(records))


def naive_mask_ap(found, truth, label, threshold):
    """The devkit's procedure on decoded masks, one detection at a time."""
    mine = [one for one in found if one["category_id"] == label + 1]
    records = {record.image_id: record for record in truth.records}
    used, hits = set(), []
    for one in sorted(mine, key=lambda one: -one["score"]):
        record = records[one["image_id"]]
        mask = mask_utils.decode(one["segmentation"]).astype(bool)
        best, place = -1.0, None
        for j in np.flatnonzero(record.labels == label):
            other = mask_utils.decode(record.masks[j]).astype(bool)
            iou = (mask & other).sum() / (mask | other).sum()
            if iou > best:
                best, place = iou, (one["image_id"], j)
        hits.append(best >= threshold and place not in used)
        if hits[-1]:
            used.add(place)
    total = sum(int((record.labels == label).sum()) for record in truth.records)
    curve = [(sum(hits[:n]) / total, sum(hits[:n]) / n) for n in range(1, len(hits) + 1)]
    ap, last = 0.0, 0.0
    for recall, _ in curve:
        ap += (recall - last) * max(p for r, p in curve if r >= recall)
        last = recall
    return 100 * ap


def test_mask_ap_is_the_devkit_procedure_on_decoded_masks():
    for seed in range(20):
        found, truth = random_masks(seed)
        got = voc_mask_ap(found, truth)
        for key, threshold in (("ap25", 0.25), ("ap50", 0.5), ("ap70", 0.7), ("ap75", 0.75)):
            want = [naive_mask_ap(found, truth, label, threshold) for label in (0, 1)]
            assert got[key] == pytest.approx(np.mean(want), abs=1e-9)
