"""Metrics against loops written from their definitions, and against pycocotools."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metric_cases import CLASSES, IDS, corners, devkit_ap, overlap, random_boxes, random_case
from pycocotools import mask as mask_utils

from weaksam_jax.boxes import to_xywh
from weaksam_jax.data.records import TruthRecord, TruthSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.evaluate import (
    coco_ap,
    corloc,
    mask_quality,
    mask_recall,
    pgt_quality,
    proposal_recall,
    voc_ap,
)


@pytest.mark.parametrize("rule", ["07", "12"])
def test_voc_ap_is_the_devkit_procedure(rule):
    for seed in range(60):
        found, truth = random_case(seed)
        got = voc_ap(found, truth, rule=rule)["per_class"]
        for label, name in enumerate(CLASSES):
            want = devkit_ap(found, truth, label, rule == "07")
            if want is None:
                assert name not in got
            else:
                assert got[name] == pytest.approx(100 * want, abs=1e-9)


def test_area_rule_is_near_pycocotools():
    """Without difficult objects; COCO samples the same envelope at 101 recalls."""
    for seed in range(10):
        found, truth = random_case(seed, difficult=0, images=40)
        ours, coco = voc_ap(found, truth, rule="12")["ap50"], coco_ap(found, truth)["ap50"]
        assert ours == pytest.approx(coco, abs=1.5)


def test_golden_curve():
    """Two objects; right, wrong, right: recalls .5, .5, 1 and precisions 1, 1/2, 2/3."""
    boxes = np.asarray([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    none = np.zeros(2, bool)
    record = TruthRecord(1, "a", None, 60, 60, boxes, np.zeros(2, np.int32), none, none)
    truth = TruthSplit("made up", "test", CLASSES, IDS, (record,))
    found = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": score}
        for box, score in (([0, 0, 10, 10], 0.9), ([40, 0, 5, 5], 0.8), ([20, 20, 10, 10], 0.7))
    ]
    assert voc_ap(found, truth)["ap50"] == pytest.approx(100 * (6 * 1 + 5 * 2 / 3) / 11)
    assert voc_ap(found, truth, rule="12")["ap50"] == pytest.approx(100 * (0.5 + 0.5 * 2 / 3))
    assert corloc(found, truth)["corloc"] == 100
    assert voc_ap([], truth)["ap50"] == 0 and corloc([], truth)["corloc"] == 0


def test_corloc_is_the_loop():
    for seed in range(40):
        found, truth = random_case(seed)
        per_class = {}
        for label, name in enumerate(CLASSES):
            hits = []
            for record in truth.records:
                own = record.boxes[record.labels == label]
                if not len(own):
                    continue
                mine = [
                    one
                    for one in found
                    if one["image_id"] == record.image_id and one["category_id"] == IDS[label]
                ]
                best = max(mine, key=lambda one: one["score"], default=None)
                hits.append(best is not None and any(overlap(corners(best), b) > 0.5 for b in own))
            if hits:
                per_class[name] = 100 * sum(hits) / len(hits)
        assert corloc(found, truth)["per_class"] == pytest.approx(per_class)


def loop_matches(own, objects, threshold):
    pairs = [(overlap(a, b), i, j) for i, a in enumerate(own) for j, b in enumerate(objects)]
    rows, columns = set(), set()
    for value, i, j in sorted(pairs, key=lambda p: (-p[0], p[1], p[2])):
        if value >= threshold and i not in rows and j not in columns:
            rows.add(i)
            columns.add(j)
    return len(rows)


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_proposal_recall_is_one_to_one(seed, limit):
    rng = np.random.default_rng(seed)
    _, truth = random_case(seed)
    boxes = [random_boxes(rng, int(rng.integers(0, 9))) for _ in truth.records]
    total = sum(len(r.boxes) for r in truth.records)
    found = sum(
        loop_matches(own[:limit], record.boxes, 0.5)
        for own, record in zip(boxes, truth.records, strict=True)
    )
    got = proposal_recall(boxes, truth, (0.5,), limit)
    assert got == {"0.50": pytest.approx(found / max(total, 1))}


def test_pgt_quality_counts():
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [0, 30, 10, 40]]
    truth = TruthSplit(
        "made up",
        "train",
        CLASSES,
        IDS,
        (
            TruthRecord(
                1,
                "a",
                None,
                60,
                60,
                np.asarray(boxes, np.float32),
                np.asarray([0, 0, 0, 1], np.int32),
                np.asarray([False, False, True, False]),
                np.zeros(4, bool),
            ),
        ),
    )
    annotations = [
        {"image_id": 1, "category_id": IDS[c], "bbox": b}
        for c, b in (
            (0, [0, 0, 10, 10]),  # right
            (0, [0, 0, 10, 9]),  # a double: wrong
            (0, [21, 1, 3, 3]),  # a part: wrong
            (0, [40, 0, 10, 10]),  # on a difficult object: ignored
            (2, [0, 30, 10, 10]),  # another class: wrong
        )
    ]
    quality = pgt_quality({"annotations": annotations}, truth)
    assert quality["precision50"] == pytest.approx(1 / 4)
    assert quality["recall50"] == pytest.approx(1 / 3)
    counts = {key: quality[key] for key in ("objects", "found", "part_only", "missed")}
    assert counts == {"objects": 3, "found": 1, "part_only": 1, "missed": 1}
    assert quality["per_image"] == 5
    each = quality["per_class"]
    assert [each[name]["objects"] for name in CLASSES[:3]] == [2, 1, 0]
    assert [each[name]["found"] for name in CLASSES[:3]] == [1, 0, 0]
    assert [each[name]["part_only"] for name in CLASSES[:3]] == [1, 0, 0]
    assert [each[name]["missed"] for name in CLASSES[:3]] == [0, 1, 0]
    assert each[CLASSES[0]]["precision50"] == pytest.approx(1 / 3)


def quality_as_loop(annotations, truth, iou=0.5):
    """`pgt_quality` written out a box at a time: right, boxes, objects, part_only by class."""
    counts = {name: [0, 0, 0, 0] for name in truth.classes}
    for record in truth.records:
        for label, name in enumerate(truth.classes):
            mine = [
                corners(one)
                for one in annotations
                if one["image_id"] == record.image_id and one["category_id"] == IDS[label]
            ]
            own = [i for i, other in enumerate(record.labels) if other == label]
            easy = [i for i in own if not record.difficult[i] and not record.crowd[i]]
            pairs = [
                (overlap(b, record.boxes[i]), -n, -i) for n, b in enumerate(mine) for i in easy
            ]
            matched, found = set(), set()
            for share, n, i in sorted(pairs, reverse=True):
                if share >= iou and -n not in matched and -i not in found:
                    matched.add(-n)
                    found.add(-i)
            aside = {
                n
                for n, box in enumerate(mine)
                if n not in matched
                and any(overlap(box, record.boxes[i]) >= iou for i in own if i not in easy)
            }
            wrong = [box for n, box in enumerate(mine) if n not in matched | aside]
            held = [i for i in easy if i not in found and any(
                share_inside(box, record.boxes[i]) >= 0.75 for box in wrong
            )]  # fmt: skip
            for place, count in enumerate((matched, mine, easy, held)):
                counts[name][place] += len(count)
            counts[name][1] -= len(aside)
    return counts


def share_inside(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0) / ((a[2] - a[0]) * (a[3] - a[1]))


def with_inner_objects(record):
    """The record with an object of the same class in the corner of each of its objects."""
    inner = record.boxes.copy()
    inner[:, 2:] -= (inner[:, 2:] - inner[:, :2]) // 3 * 2
    doubled = {key: np.tile(getattr(record, key), 2) for key in ("labels", "difficult", "crowd")}
    return replace(record, boxes=np.concatenate([record.boxes, inner]), **doubled)


@given(st.integers(0, 10_000))
def test_pgt_quality_is_the_loop(seed):
    found, truth = random_case(seed)
    for place, one in enumerate(found):  # every third a part, perhaps of several objects
        share = 1 if place % 3 else 3
        one["bbox"][2:] = [max(side // share, 1) for side in one["bbox"][2:]]
    truth = replace(truth, records=tuple(map(with_inner_objects, truth.records)))
    quality = pgt_quality({"annotations": found}, truth)
    for name, (right, boxes, objects, part) in quality_as_loop(found, truth).items():
        if not boxes and not objects:
            continue
        own = quality["per_class"][name]
        assert (own["found"], own["objects"], own["part_only"]) == (right, objects, part)
        assert own["missed"] == objects - right - part
        assert own["precision50"] == pytest.approx(right / max(boxes, 1))


def test_a_box_on_its_own_object_is_no_part_of_another():
    """A small object inside a large one of its class: its box is right, the large one missed."""
    boxes = np.asarray([[0, 0, 50, 50], [5, 5, 15, 15], [30, 30, 40, 40]], np.float32)
    flags, crowd = np.asarray([False, False, True]), np.zeros(3, bool)
    record = TruthRecord(1, "a", None, 60, 60, boxes, np.zeros(3, np.int32), flags, crowd)
    truth = TruthSplit("made up", "train", CLASSES, IDS, (record,))

    def counts(*found):
        rows = [{"image_id": 1, "category_id": IDS[0], "bbox": box} for box in found]
        quality = pgt_quality({"annotations": rows}, truth)
        return quality["found"], quality["part_only"], quality["missed"]

    small, difficult, part = [5, 5, 10, 10], [30, 30, 10, 10], [20, 5, 9, 9]
    assert counts(small) == (1, 0, 1)
    assert counts(small, difficult) == (1, 0, 1)
    assert counts(small, part) == (1, 1, 0)


def test_pgt_quality_of_a_split_is_that_of_its_images():
    """Boxes in any order, images without any: the same as image by image."""
    found, truth = random_case(3, images=12)
    found = [one for one in found if one["image_id"] not in (0, 35, 77)]
    whole = pgt_quality({"annotations": found}, truth)
    assert pgt_quality({"annotations": found[::-1]}, truth) == whole
    alone = [
        pgt_quality(
            {"annotations": [one for one in found if one["image_id"] == record.image_id]},
            replace(truth, records=(record,)),
        )
        for record in truth.records
    ]
    for figure in ("objects", "found", "part_only", "missed"):
        assert whole[figure] == sum(one[figure] for one in alone)
    nothing = replace(truth, records=())
    assert pgt_quality({"annotations": []}, nothing)["objects"] == 0


def rle(mask):
    return mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))


def test_masks_against_boolean_arrays():
    rng = np.random.default_rng(0)
    true = [np.zeros((20, 30), bool), np.zeros((20, 30), bool)]
    true[0][2:10, 3:14], true[1][12:19, 15:29] = True, True
    made = [true[0] & (rng.random((20, 30)) < 0.8), true[1] & (rng.random((20, 30)) < 0.3)]
    boxes = np.asarray([[3, 2, 14, 10], [15, 12, 29, 19]], np.float32)
    none = np.zeros(2, bool)
    record = TruthRecord(
        1, "a", None, 30, 20, boxes, np.zeros(2, np.int32), none, none, tuple(map(rle, true))
    )
    truth = TruthSplit("made up", "train", CLASSES, IDS, (record,))
    values = [(a & b).sum() / (a | b).sum() for a, b in zip(made, true, strict=True)]
    assert values[0] > 0.5 > values[1]
    annotations = [
        {"image_id": 1, "category_id": 1, "bbox": to_xywh(b).tolist(), "segmentation": rle(m)}
        for b, m in zip(boxes, made, strict=True)
    ]
    quality = mask_quality({"annotations": annotations}, truth)
    assert quality["iou"] == pytest.approx(np.mean(values))
    assert quality["precision50"] == 0.5 and quality["recall50"] == 0.5
    recall = mask_recall([[rle(m) for m in made]], truth)
    assert recall == {"0.50": 0.5, "0.75": float(values[0] >= 0.75) / 2, "0.90": 0.0}


def test_masks_are_absent_without_true_masks():
    _, truth = random_case(0)
    assert mask_quality({"annotations": []}, truth) is None


def test_foreign_detections_are_refused():
    found, truth = random_case(1)
    for change in ({"image_id": 12345}, {"category_id": 2}):
        with pytest.raises(BadInput, match=r"entry 0: .* does not have"):
            voc_ap([found[0] | change], truth)


@pytest.mark.parametrize("place", ["bbox", "score"])
def test_nan_is_refused(place):
    found, truth = random_case(1)
    change = {"bbox": [0, 0, float("nan"), 5]} if place == "bbox" else {"score": float("nan")}
    with pytest.raises(BadInput, match=f"entry 1: {place} is no .*nan"):
        voc_ap([found[0], found[1] | change], truth)


def marked(flag):
    """One plain object and one that is difficult or a crowd, far apart."""
    boxes = np.asarray([[0, 0, 10, 10], [20, 20, 40, 40]], np.float32)
    flags = {"difficult": np.zeros(2, bool), "crowd": np.zeros(2, bool)}
    flags[flag][1] = True
    record = TruthRecord(0, "a", None, 60, 60, boxes, np.zeros(2, np.int32), **flags)
    return TruthSplit("made up", "test", CLASSES, IDS, (record,))


def results(*boxes):
    """Detections of class 0 by falling score."""
    return [
        {"image_id": 0, "category_id": 1, "bbox": list(box), "score": 1 - rank / 10}
        for rank, box in enumerate(boxes)
    ]


@pytest.mark.parametrize("flag", ["difficult", "crowd"])
@pytest.mark.parametrize("metric", [voc_ap, coco_ap])
def test_difficult_objects_and_crowds_are_neither_right_nor_wrong(flag, metric):
    """A false detection above the right one would halve the precision."""
    truth = marked(flag)
    assert metric(results([20, 20, 20, 20], [0, 0, 10, 10]), truth)["ap50"] == pytest.approx(100)
    assert metric(results([45, 45, 5, 5], [0, 0, 10, 10]), truth)["ap50"] == pytest.approx(50)
    assert metric(results([20, 20, 20, 20]), truth)["ap50"] == 0


def test_coco_takes_a_part_of_a_crowd_but_not_of_a_difficult_object():
    """A crowd's IoU is by the detection's area alone, and it takes any number of detections."""
    found = results([20, 20, 8, 8], [30, 30, 8, 8], [0, 0, 10, 10])
    assert coco_ap(found, marked("crowd"))["ap50"] == pytest.approx(100)
    assert coco_ap(found, marked("difficult"))["ap50"] == pytest.approx(100 / 3, abs=0.1)
