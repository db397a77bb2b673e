"""Pixels and thresholds of the VOC devkit, of the official CorLoc script and of pycocotools."""

import numpy as np
import pytest
from metric_cases import CLASSES, IDS, devkit_ap, random_case
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from weaksam_jax.boxes import to_xywh
from weaksam_jax.data.records import TruthRecord, TruthSplit
from weaksam_jax.evaluate import coco_ap, corloc, voc_ap


def inclusive_overlap(a, b):
    """IoU of inclusive corners, the last column and row inside: the devkit's "+1"."""
    w = min(a[2], b[2]) - max(a[0], b[0]) + 1
    h = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if w <= 0 or h <= 0:
        return 0.0
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return w * h / (sum(areas) - w * h)


def test_corloc_of_the_official_script_is_its_loop():
    """docs/provenance/mil.md, section 4: 0-based inclusive detections rounded to 0.1, 1-based
    inclusive objects, IoU with +1 above 0.5, difficult objects too, a class without detection
    missed."""
    differ = 0
    for seed in range(60):
        found, truth = random_case(seed)
        for one in found:  # fractions, so that the rounding shows
            one["bbox"] = [v + 0.07 * (1 + one["score"]) for v in one["bbox"]]
        per_class = {}
        for label, name in enumerate(CLASSES):
            hits = []
            for record in truth.records:
                own = record.boxes[record.labels == label].astype(float)
                if not len(own):
                    continue
                annotated = [(x1 + 1, y1 + 1, x2, y2) for x1, y1, x2, y2 in own]
                mine = [
                    one
                    for one in found
                    if one["image_id"] == record.image_id and one["category_id"] == IDS[label]
                ]
                hit = False
                if mine:
                    x, y, w, h = max(mine, key=lambda one: one["score"])["bbox"]
                    box = [round(v, 1) for v in (x, y, x + w - 1, y + h - 1)]
                    hit = any(inclusive_overlap(box, other) > 0.5 for other in annotated)
                hits.append(hit)
            if hits:
                per_class[name] = 100 * sum(hits) / len(hits)
        got = corloc(found, truth, convention="official")
        assert got["per_class"] == pytest.approx(per_class)
        assert got["corloc"] == pytest.approx(np.mean(list(per_class.values())))
        differ += got["per_class"] != corloc(found, truth)["per_class"]
    assert differ > 5  # a pixel matters on boxes this small


def test_corloc_conventions_by_hand():
    """IoU 1/2 is no hit; the official script sees the object a pixel further right and down."""
    none = np.zeros(1, bool)
    box = np.asarray([[0, 0, 10, 10]], np.float32)
    record = TruthRecord(1, "a", None, 60, 60, box, np.zeros(1, np.int32), none, none)
    truth = TruthSplit("made up", "test", CLASSES, IDS, (record,))

    def both(*bbox):
        found = [{"image_id": 1, "category_id": 1, "bbox": list(bbox), "score": 1.0}]
        return [corloc(found, truth, convention=c)["corloc"] for c in ("continuous", "official")]

    assert both(0, 0, 10, 5) == [0, 0]  # 50 / 100; 36 / 115
    assert both(0, 0, 10, 6) == [100, 0]  # 60 / 100; 9 * 5 / 115
    assert both(4, 4, 10, 10) == [0, 0]  # 36 / 164; 49 / 151
    assert both(1, 5, 10, 6.2) == [0, 100]  # 45 / 117; 60 / 102


@pytest.mark.parametrize("rule", ["07", "12"])
def test_voc_ap_has_the_pixels_of_the_devkit(rule):
    """The devkit's corners (1-based, inclusive) and its +1, fractions and touching boxes too."""
    rng = np.random.default_rng(5)

    def devkit_overlap(a, b):
        first, second = ((x1 + 1, y1 + 1, x2, y2) for x1, y1, x2, y2 in (a, b))
        return inclusive_overlap(first, second)

    for seed in range(60):
        found, truth = random_case(seed)
        for one in found:
            one["bbox"] = [
                v + f for v, f in zip(one["bbox"], rng.choice([0, 0.25], 4), strict=True)
            ]
        got = voc_ap(found, truth, rule=rule)["per_class"]
        for label, name in enumerate(CLASSES):
            want = devkit_ap(found, truth, label, rule == "07", devkit_overlap)
            assert (name in got) == (want is not None)
            if want is not None:
                assert got[name] == pytest.approx(100 * want, abs=1e-9)


def test_coco_ap_is_what_pycocotools_summarises():
    for seed in range(8):
        found, truth = random_case(seed, difficult=0)
        annotations = [
            {"image_id": r.image_id, "category_id": IDS[label], "bbox": to_xywh(box).tolist(),
             "area": float(np.prod(box[2:] - box[:2])), "iscrowd": 0}
            for r in truth.records
            for box, label in zip(r.boxes.astype(float), r.labels, strict=True)
        ]  # fmt: skip
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": r.image_id} for r in truth.records],
            "categories": [{"id": i, "name": n} for i, n in zip(IDS, CLASSES, strict=True)],
            "annotations": [{"id": i, **one} for i, one in enumerate(annotations, 1)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(one) for one in found]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        got = coco_ap(found, truth)
        want = [100 * value for value in evaluation.stats[:3]]
        assert [got["ap"], got["ap50"], got["ap75"]] == pytest.approx(want)
