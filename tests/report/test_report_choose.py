"""Which images are shown, and which boxes count as right."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weaksam_jax.boxes import to_xywh
from weaksam_jax.data.records import TagRecord, TruthRecord, TruthSplit
from weaksam_jax.evaluate import pgt_quality
from weaksam_jax.report.artefacts import Found
from weaksam_jax.report.choose import judge, showcase, worst

tag_sets = st.lists(st.sets(st.integers(0, 5), max_size=4), min_size=1, max_size=30)


def records(tags) -> list[TagRecord]:
    return [
        TagRecord(7 * i + 1, f"{i}.jpg", Path("x"), 10, 10, tuple(sorted(one)))
        for i, one in enumerate(tags)
    ]


@given(tag_sets, st.integers(6, 12))
def test_every_class_has_its_turn(tags, count):
    everything = records(tags)
    chosen = showcase(everything, count)
    tagged = [r for r in everything if r.tags]
    assert len(chosen) == len({r.image_id for r in chosen}) == min(count, len(tagged or everything))
    assert {t for r in chosen for t in r.tags} == {t for r in everything for t in r.tags}
    places = [everything.index(r) for r in chosen]
    assert places == sorted(places)


@given(tag_sets)
def test_the_order_of_the_split_does_not_change_the_choice(tags):
    everything = records(tags)
    chosen = {r.image_id for r in showcase(everything, 4)}
    assert {r.image_id for r in showcase(everything[::-1], 4)} == chosen


def test_worst_leaves_out_images_without_faults():
    everything = records([{0}, {1}, {2}, {3}])
    faults = dict(zip([r.image_id for r in everything], [2, 0, 5, 2], strict=True))
    chosen = worst(everything, lambda r: faults[r.image_id], 3)
    assert [faults[r.image_id] for r in chosen] == [5, 2, 2]
    assert [r.image_id for r in chosen[1:]] == [everything[0].image_id, everything[3].image_id]


def found_of(boxes, labels) -> Found:
    count = len(boxes)
    boxes = np.asarray(boxes, float).reshape(-1, 4)
    return Found(to_xywh(boxes), np.asarray(labels, int), np.ones(count), (None,) * count)


def truth_of(boxes, labels, difficult=None) -> TruthRecord:
    count = len(boxes)
    difficult = np.zeros(count, bool) if difficult is None else np.asarray(difficult, bool)
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    labels = np.asarray(labels, np.int32)
    return TruthRecord(1, "a", Path("a"), 99, 99, boxes, labels, difficult, np.zeros(count, bool))


def test_one_box_finds_one_object_and_difficult_ones_are_spared():
    truth = truth_of([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], [0, 0, 1], [0, 0, 1])
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [40, 0, 50, 10], [40, 0, 50, 9]]
    verdict = judge(found_of(boxes, [0, 0, 1, 1, 1]), truth)
    assert verdict.right.tolist() == [True, False, False, True, True]
    assert verdict.found.tolist() == [True, False, True]
    assert (verdict.objects, verdict.missed, verdict.wrong) == (2, 1, 2)


@st.composite
def scenes(draw):
    """Boxes and objects on a coarse grid, so that they meet often."""

    def some(least):
        count = draw(st.integers(least, 6))
        corner = st.tuples(*[st.integers(0, 4)] * 2)
        side = st.tuples(*[st.integers(1, 4)] * 2)
        spots = [draw(st.tuples(corner, side)) for _ in range(count)]
        boxes = [[x, y, x + w, y + h] for (x, y), (w, h) in spots]
        return boxes, [draw(st.integers(0, 1)) for _ in range(count)]

    found, objects = some(0), some(1)
    difficult = [draw(st.booleans()) for _ in objects[0]]
    return found_of(*found), truth_of(*objects, difficult)


@given(scenes())
def test_counts_agree_with_the_measured_quality(scene):
    found, truth = scene
    split = TruthSplit("d", "s", ("a", "b"), (1, 2), (truth,))
    rows = [
        {"image_id": 1, "category_id": int(c) + 1, "bbox": [*b[:2], b[2] - b[0], b[3] - b[1]]}
        for b, c in zip(found.boxes, found.labels, strict=True)
    ]
    quality = pgt_quality({"annotations": rows}, split)
    verdict = judge(found, truth)
    assert verdict.objects == quality["objects"]
    assert verdict.objects - verdict.missed == quality["found"]
    if quality["found"]:
        boxes = round(quality["found"] / quality["precision50"])
        assert verdict.wrong == boxes - quality["found"]
