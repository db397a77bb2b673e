"""Adaptive PGT against the algorithm written out as loops, and its stated properties."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.pgt import PgtConfig, adaptive_pgt, make_pgt, top_k_pgt


@st.composite
def images(draw):
    """Boxes with many containments, distinct scores, three classes, some tags."""
    count = draw(st.integers(1, 14))
    corner = draw(st.lists(st.tuples(*[st.integers(0, 12)] * 4), min_size=count, max_size=count))
    boxes = np.asarray([(x, y, x + w + 1, y + h + 1) for x, y, w, h in corner], float)
    scores = np.asarray(draw(st.permutations(range(1, count + 1))), float) / (count + 1)
    labels = np.asarray(draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    tags = sorted(draw(st.sets(st.integers(0, 2))))
    return boxes, scores, labels, tags


def inside(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0) / ((a[2] - a[0]) * (a[3] - a[1]))


def algorithm_2(boxes, scores, labels, tags, tau_s=0.3, tau_o=0.85):
    kept = []
    for label in tags:
        mine = [i for i in range(len(boxes)) if labels[i] == label]
        if not mine:
            continue
        low, high = min(scores[mine]), max(scores[mine])
        chosen = [
            i
            for i in mine
            if scores[i] == high or (scores[i] - low) / max(high - low, 1e-300) > tau_s
        ]
        for j in chosen:
            falls = False
            for k in chosen:
                if k == j or inside(boxes[j], boxes[k]) < tau_o:
                    continue
                mutual = inside(boxes[k], boxes[j]) >= tau_o
                falls |= not (mutual and scores[j] > scores[k])
            if not falls:
                kept.append(j)
        if not set(kept) & set(chosen):
            kept.append(max(chosen, key=lambda i: scores[i]))
    return sorted(kept)


@given(images())
def test_paper_rule_is_algorithm_2(image):
    assert adaptive_pgt(*image).tolist() == algorithm_2(*image)


@given(images())
def test_no_tagged_class_vanishes_and_no_other_appears(image):
    _boxes, _scores, labels, tags = image
    kept = adaptive_pgt(*image)
    assert set(labels[kept]) == set(tags) & set(labels.tolist())


@given(images())
def test_best_kept_is_algorithm_2_without_what_lies_around_the_best(image):
    boxes, scores, labels, tags = image
    kept = adaptive_pgt(boxes, scores, labels, tags, rule="best_kept").tolist()
    expected = []
    for label in tags:
        mine = [i for i in range(len(boxes)) if labels[i] == label]
        if not mine:
            continue
        best = max(mine, key=lambda i: scores[i])
        low, high = min(scores[mine]), scores[best]
        rest = [i for i in mine if i == best or inside(boxes[best], boxes[i]) < 0.85]
        rest = [i for i in rest if i == best or (scores[i] - low) / (high - low) > 0.3]
        # Nothing is left to threshold: with tau_s below 0 the loop applies the overlap test alone.
        alone = algorithm_2(boxes[rest], scores[rest], np.zeros(len(rest)), [0], -1.0)
        expected += [rest[i] for i in alone]
        assert best in kept
    assert kept == sorted(expected)


@given(images(), st.randoms())
def test_paper_rule_does_not_depend_on_the_order(image, random):
    boxes, scores, labels, tags = image
    order = list(range(len(boxes)))
    random.shuffle(order)
    again = adaptive_pgt(boxes[order], scores[order], labels[order], tags)
    assert sorted(np.asarray(order)[again]) == adaptive_pgt(*image).tolist()


@given(images())
def test_bool_and_integer_tags_are_the_same(image):
    boxes, scores, labels, tags = image
    mask = np.isin(np.arange(3), tags)
    for rule in ("paper", "official"):
        a = adaptive_pgt(boxes, scores, labels, tags, rule=rule)
        b = adaptive_pgt(boxes, scores, labels, mask, rule=rule)
        assert a.tolist() == b.tolist()


@pytest.mark.parametrize(
    ("scores", "paper", "official"),
    [((0.5, 0.45), 1, 2), ((0.6, 0.55, 0.5, 0.45, 0.4), 3, 5), ((0.7,), 1, 1), ((0.5, 0.5), 2, 2)],
)
def test_where_paper_and_official_script_differ(scores, paper, official):
    """docs/provenance/mil.md, section 5: few boxes of like score; far apart, so containment plays
    no part."""
    boxes = np.asarray([[20 * i, 0, 20 * i + 10, 10] for i in range(len(scores))], float)
    labels = np.zeros(len(scores), int)
    assert len(adaptive_pgt(boxes, np.asarray(scores), labels, [0])) == paper
    assert len(adaptive_pgt(boxes, np.asarray(scores), labels, [0], rule="official")) == official


def test_part_inside_a_whole_falls_even_when_it_scores_best():
    boxes = np.asarray([[2, 2, 6, 6], [0, 0, 10, 10], [30, 30, 40, 40]], float)
    scores, labels = np.asarray([0.9, 0.8, 0.1]), np.zeros(3, int)
    assert adaptive_pgt(boxes, scores, labels, [0]).tolist() == [1]


def test_a_ring_of_boxes_leaves_its_best():
    boxes = np.asarray([[0, 0, 8.6, 10], [0, 0, 9.3, 10], [0, 0, 10.2, 10], [30, 30, 40, 40]])
    scores, labels = np.asarray([0.9, 0.8, 0.7, 0.1]), np.zeros(4, int)
    assert adaptive_pgt(boxes, scores, labels, [0]).tolist() == [0]


def test_of_two_equal_boxes_the_better_stays():
    boxes = np.asarray([[0, 0, 10, 10], [0, 0, 10, 10]], float)
    assert adaptive_pgt(boxes, np.asarray([0.6, 0.9]), np.zeros(2, int), [0]).tolist() == [1]


@given(images(), st.integers(1, 3))
def test_top_k(image, k):
    _boxes, scores, labels, tags = image
    kept = top_k_pgt(*image, k=k)
    assert kept.tolist() == sorted(kept)
    for label in tags:
        own = np.flatnonzero(labels == label)
        want = sorted(own, key=lambda i: -scores[i])[:k]
        assert set(kept[labels[kept] == label]) == set(want)


def split(tmp_path):
    records = tuple(
        TagRecord(i, f"{i}.jpg", tmp_path / f"{i}.jpg", 50, 40, tags)
        for i, tags in ((3, (0,)), (7, ()), (9, (0, 1)))
    )
    return TagSplit("made up", "train", ("cat", "dog"), (1, 18), records)


def detection(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_make_pgt_is_a_coco_file(tmp_path):
    found = [
        detection(3, 1, [0, 0, 10, 10], 0.9),
        detection(3, 18, [0, 0, 10, 10], 0.99),  # not among the image's tags
        detection(7, 1, [0, 0, 10, 10], 0.9),  # a negative image
        detection(9, 1, [0, 0, 10, 10], 0.9),
        detection(9, 1, [20, 20, 10, 15], 0.8),
        detection(9, 1, [30, 0, 9, 9], 0.1),
        detection(9, 18, [5, 5, 20, 20], 0.2),
    ]
    path = tmp_path / "pgt.json"
    path.write_text(json.dumps(make_pgt(found, split(tmp_path))))
    coco = COCO(str(path))
    assert coco.getImgIds() == [3, 7, 9]
    assert [a["bbox"] for a in coco.loadAnns(coco.getAnnIds([9], [1]))] == [
        [0, 0, 10, 10],
        [20, 20, 10, 15],
    ]
    assert len(coco.getAnnIds([9], [18])) == 1 and len(coco.getAnnIds([3])) == 1
    assert not coco.getAnnIds([7])
    top1 = make_pgt(found, split(tmp_path), PgtConfig(rule="top_k"))
    assert len(top1["annotations"]) == 3


def test_boxes_are_cut_to_the_image_before_the_choice(tmp_path):
    """The best lies outside of the 50 x 40 image, so the second is the class's best."""
    found = [
        detection(3, 1, [60, 0, 10, 10], 0.9),
        detection(3, 1, [40, 30, 30, 30], 0.8),
        detection(3, 1, [-5, -5, 15, 25], 0.7),
    ]
    top1 = make_pgt(found, split(tmp_path), PgtConfig(rule="top_k"))["annotations"]
    assert [(one["bbox"], one["area"], one["score"]) for one in top1] == [
        ([40, 30, 10, 10], 100, 0.8)
    ]
    whole = make_pgt(found, split(tmp_path), PgtConfig(rule="pgf", score_threshold=0.0))[
        "annotations"
    ]
    assert [one["bbox"] for one in whole] == [[40, 30, 10, 10], [0, 0, 10, 20]]


def test_foreign_detections_are_refused(tmp_path):
    for image, category in ((4, 1), (3, 2)):
        with pytest.raises(BadInput, match="does not have"):
            make_pgt([detection(image, category, [0, 0, 1, 1], 1.0)], split(tmp_path))


def official_loop(boxes, scores, labels, tags, keep, contain, normalise, as_xywh, nested):
    """The official script, written out: no minimum taken off, the first of a class stays."""

    def corners(box):
        return (*box[:2], box[0] + box[2], box[1] + box[3]) if as_xywh else tuple(box)

    def size(box):
        return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

    kept = []
    for label in tags:
        mine = [i for i in range(len(boxes)) if labels[i] == label]
        spread = max(scores[mine]) - min(scores[mine]) + 1e-8 if mine and normalise else 1
        chosen = [i for place, i in enumerate(mine) if place == 0 or scores[i] / spread >= keep]
        for i in chosen:
            a, falls = corners(boxes[i]), False
            for j in chosen:
                b = corners(boxes[j])
                both = (*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:]))
                falls |= i != j and size(both) / (size(a) + 1e-6) >= contain
            if not falls or label in nested:
                kept.append(i)
    return sorted(kept)


@pytest.mark.parametrize(
    ("rule", "normalise", "as_xywh"),
    [("official", True, False), ("official_voc", True, True), ("pgf", False, False)],
)
@given(image=images(), nested=st.sets(st.integers(0, 2)), keep=st.sampled_from([0.2, 0.5]))
def test_official_rules_equal_the_loop(rule, normalise, as_xywh, image, nested, keep):
    expected = official_loop(*image, keep, 0.85, normalise, as_xywh, nested)
    found = adaptive_pgt(*image, keep, 0.85, rule=rule, nested=sorted(nested))
    assert found.tolist() == expected


def test_pgf_lets_bottles_lie_in_one_another(tmp_path):
    """SoS-WSOD's filter on names: a small box of the same class inside a large one."""
    record = TagRecord(1, "1.jpg", tmp_path / "1.jpg", 100, 100, (0, 1))
    train = TagSplit("VOC", "train", ("bottle", "dog"), (1, 2), (record,))
    found = [
        {"image_id": 1, "category_id": category, "bbox": box, "score": score}
        for category in (1, 2)
        for box, score in (([0, 0, 90, 90], 0.9), ([10, 10, 20, 20], 0.5), ([60, 60, 9, 9], 0.1))
    ]
    made = make_pgt(found, train, PgtConfig(rule="pgf"))["annotations"]
    assert [(one["category_id"], one["score"]) for one in made] == [(1, 0.9), (1, 0.5), (2, 0.9)]


@pytest.mark.parametrize("rule", ["paper", "best_kept", "official", "official_voc", "pgf", "top_k"])
def test_the_rule_brings_its_own_values_and_given_ones_stay(rule):
    own = PgtConfig(rule=rule).resolved()
    assert own.score_threshold == (0.2 if rule == "pgf" else 0.3)
    assert own.nested == (
        ("bottle", "bus", "car", "chair", "cow", "pottedplant", "sheep") if rule == "pgf" else ()
    )
    given = PgtConfig(rule=rule, score_threshold=0.7, nested=("dog",))
    assert given.resolved() == given and own.resolved() == own


def test_pgf_has_its_own_threshold_everywhere(tmp_path):
    """Scores of 0.25 lie between pgf's 0.2 and the 0.3 of the others."""
    boxes = np.asarray([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], float)
    scores, labels = np.asarray([0.9, 0.25, 0.1]), np.zeros(3, int)
    assert adaptive_pgt(boxes, scores, labels, [0], rule="pgf").tolist() == [0, 1]
    assert adaptive_pgt(boxes, scores, labels, [0]).tolist() == [0]
    found = [detection(3, 1, [20 * place, 0, 10, 10], score) for place, score in enumerate(scores)]
    for settings, kept in ((PgtConfig(), 1), (PgtConfig(rule="pgf"), 2)):
        assert len(make_pgt(found, split(tmp_path), settings)["annotations"]) == kept


@pytest.mark.parametrize(
    "values",
    [
        *({"score_threshold": value} for value in (-0.1, 1.1, np.nan, np.inf)),
        *({"overlap_threshold": value} for value in (-0.1, 2.0, np.nan)),
        *({"k": value} for value in (0, -1)),
        {"rule": "papr"},
    ],
)
def test_settings_out_of_range_are_refused(values):
    (name,) = values
    with pytest.raises(BadInput, match=f"PgtConfig: {name} is "):
        PgtConfig(**values)
    image = np.asarray([[0, 0, 1, 1]], float), np.ones(1), np.zeros(1, int), [0]
    with pytest.raises(BadInput, match=f"setting {name}: is "):
        top_k_pgt(*image, **values) if name == "k" else adaptive_pgt(*image, **values)


def test_unknown_nested_classes_are_refused(tmp_path):
    found = [detection(3, 1, [0, 0, 10, 10], 0.9)]
    for nested in (("cat", "botle"), ("bottle",)):
        with pytest.raises(BadInput, match=r"setting nested: (botle|bottle): no class"):
            make_pgt(found, split(tmp_path), PgtConfig(nested=nested))
    for settings in (PgtConfig(rule="pgf"), PgtConfig(nested=("cat",))):  # pgf's list is VOC's
        assert len(make_pgt(found, split(tmp_path), settings)["annotations"]) == 1


def test_the_official_rule_differs_from_the_script_where_a_class_first_box_is_empty(tmp_path):
    """The script would keep the first box; it lies outside, so here the next is the first."""
    found = [
        detection(3, 1, [60, 0, 10, 10], 0.1),
        detection(3, 1, [0, 0, 10, 10], 0.2),
        detection(3, 1, [20, 0, 10, 10], 0.9),
    ]
    settings = PgtConfig(rule="official", score_threshold=1.0)
    made = make_pgt(found, split(tmp_path), settings)["annotations"]
    assert [one["score"] for one in made] == [0.2, 0.9]
