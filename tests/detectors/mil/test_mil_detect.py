"""Test-time views against a loop in NumPy; what is told, refused and resumed."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from configs import vary
from tiny_mil import TINY
from tiny_mil import detect as detect_all

from weaksam_jax.backbones.pixels import network_input
from weaksam_jax.boxes import decode, from_xywh, iou
from weaksam_jax.data.scales import padded_sizes
from weaksam_jax.data.views import View
from weaksam_jax.detectors.mil import MilDetector, MilSamples, MilViews
from weaksam_jax.engine.journal import Journal
from weaksam_jax.engine.step import count_compilations
from weaksam_jax.errors import BadInput

VIEWS = vary(
    TINY,
    test={
        "tta_scales": tuple(padded_sizes(side, 96, 16) for side in (48, 64)),
        "max_detections": 15,
        "every_class": False,
    },
)


def loop_detections(detector, params, split, proposals, index):
    """One image by hand: every view on its own, NumPy averaging, a loop for the NMS."""
    config, test = detector.config, detector.config.test
    samples = MilSamples(split, proposals, config, scales=test.tta_scales)
    record, own = split.records[index], samples.boxes[index][: config.data.max_proposals]
    flips = (False, True) if test.tta_flip else (False,)
    apply = jax.jit(detector.network.apply)
    all_scores, all_boxes = [], []
    for scale in range(len(test.tta_scales)):
        for flip in flips:
            shown = samples.show(index, slice(len(own)), View(scale, flip))
            batch = {name: value[None] for name, value in shown.items()}
            images = network_input(batch["image"], batch["size"], "mini")
            inside = np.ones((1, images.shape[1] // 8, images.shape[2] // 8), bool)
            _, outputs = apply({"params": params}, images, inside, batch["boxes"], batch["prior"])
            scores = np.zeros((len(own), len(split.classes)))
            deltas = np.zeros((len(own), len(split.classes), 4))
            for branch in range(3):
                logits = np.asarray(outputs.refine[0, branch], np.float64)[: len(own)]
                exp = np.exp(logits - logits.max(-1, keepdims=True))
                scores += (exp / exp.sum(-1, keepdims=True))[:, 1:] / 3
                deltas += np.asarray(outputs.deltas[0, branch], np.float64)[: len(own), 1:] / 3
            reference = np.repeat(shown["boxes"][: len(own), None], scores.shape[1], 1)
            moved = decode(deltas, reference) if config.model.method == "mist" else reference
            height, width = shown["size"]
            if flip:
                moved = np.stack(
                    [width - moved[..., 2], moved[..., 1], width - moved[..., 0], moved[..., 3]], -1
                )
            moved = moved * np.tile([record.width / width, record.height / height], 2)
            all_boxes.append(np.clip(moved, 0, np.tile([record.width, record.height], 2)))
            all_scores.append(scores)
    assert len(all_scores) == len(flips) * len(test.tta_scales)
    scores, boxes = sum(all_scores) / len(all_scores), sum(all_boxes) / len(all_boxes)
    found = []
    for c in range(scores.shape[1]):
        kept = []
        for i in np.argsort(-scores[:, c]):
            if all(iou(boxes[i, c][None], boxes[j, c][None])[0, 0] <= test.nms for j in kept):
                kept.append(i)
        found += [(scores[i, c], c, boxes[i, c]) for i in kept]
    return sorted(found, key=lambda f: -f[0])[: test.max_detections]


def shaken(params):
    """The same network with larger outputs, so that views, branches and classes differ."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), params)


@pytest.mark.parametrize(
    "change",
    [{}, {"model": {"method": "oicr"}, "test": {"tta_flip": False}}],
    ids=["mist", "oicr"],
)
def test_detections_equal_the_loop_and_do_not_see_the_tags(drawn, trained, tmp_path, change):
    _, test, proposals = drawn
    config, params = vary(VIEWS, **change), shaken(trained)
    with count_compilations("add_view") as compiled:
        results = detect_all(params, test, proposals, config, tmp_path)
    scales = config.test.tta_scales
    buckets = set(MilSamples(test, proposals, config, scales=scales).buckets)
    assert len(compiled) == len({scale[bucket] for scale in scales for bucket in buckets}) > 1
    detector = MilDetector(config, test.classes)
    for index, record in enumerate(test.records):
        mine = [one for one in results if one["image_id"] == record.image_id]
        expected = loop_detections(detector, params, test, proposals, index)
        assert len(mine) == len(expected) == 15
        np.testing.assert_allclose(
            [one["score"] for one in mine], [score for score, _, _ in expected], rtol=1e-4
        )
        assert {one["file_name"] for one in mine} == {record.file_name}
        corners = from_xywh(np.array([one["bbox"] for one in mine]))
        for score, label, box in expected:  # near-ties may change places
            places = [
                i
                for i, one in enumerate(mine)
                if one["category_id"] == test.category_ids[label]
                and abs(one["score"] - score) < 1e-4 * score
            ]
            assert np.abs(corners[places] - box).max(1).min() < 0.05
    untagged = tuple(dataclasses.replace(record, tags=()) for record in test.records)
    blind = dataclasses.replace(test, records=untagged)
    assert detect_all(params, blind, proposals, config, tmp_path) == results


def test_scales_that_share_a_padded_size_share_its_program(drawn, trained, tmp_path):
    _, test, proposals = drawn
    config = vary(TINY, test={"tta_scales": (((64, 64),), ((64, 64),))})
    with count_compilations("add_view") as compiled:
        detect_all(trained, test, proposals, config, tmp_path)
    assert len(compiled) == 1


def test_the_best_of_every_class_is_kept_when_asked(drawn, trained, tmp_path):
    _, test, proposals = drawn
    params = shaken(trained)
    few = {"max_detections": len(test.classes)}
    kept = detect_all(params, test, proposals, vary(TINY, test=few), tmp_path)
    everything = vary(TINY, test={"max_detections": 500})
    best = {}
    for one in detect_all(params, test, proposals, everything, tmp_path):
        key = one["image_id"], one["category_id"]
        best[key] = max(best.get(key, 0), one["score"])
    assert {(one["image_id"], one["category_id"]): one["score"] for one in kept} == best
    few["every_class"] = False
    plain = detect_all(params, test, proposals, vary(TINY, test=few), tmp_path)
    assert len({(one["image_id"], one["category_id"]) for one in plain}) < len(best)


def test_left_out_proposals_are_counted_once(drawn, trained, tmp_path, capsys):
    _, test, proposals = drawn
    counts = [len(boxes) for boxes in MilSamples(test, proposals, TINY).boxes]
    limit = min(counts) - 1
    config = vary(TINY, data={"max_proposals": limit})
    detect_all(trained, test, proposals, config, tmp_path)
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "warning" in one]
    assert f"3 of 3 images have more than {limit} proposals" in line
    assert f"{sum(counts) - 3 * limit} are left out" in line and str(max(counts)) in line
    whole = vary(TINY, data={"max_proposals": 2048})
    assert MilSamples(test, proposals, whole).padded == 256
    detect_all(trained, test, proposals, whole, tmp_path)
    assert "warning" not in capsys.readouterr().err


def test_scales_that_do_not_fit_together_are_refused(drawn):
    _, test, proposals = drawn
    scales = (((64, 64),), ((64, 64), (32, 32)))
    with pytest.raises(BadInput, match="have 1 and 2 padded sizes"):
        MilSamples(test, proposals, TINY, scales=scales)


def test_a_killed_detection_goes_on(drawn, trained, tmp_path, monkeypatch):
    train, _, proposals = drawn
    whole = detect_all(trained, train, proposals, TINY, tmp_path)
    path, seen = tmp_path / "unfinished.jsonl", []
    original = MilViews.__call__

    def dies(self, chosen, pool):
        seen.append(list(chosen))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(self, chosen, pool)

    monkeypatch.setattr(MilViews, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        detect_all(trained, train, proposals, TINY, tmp_path, journal=Journal(path, "this"))
    text = path.read_text()
    assert len(text.splitlines()) == 5  # the key and two batches of two images
    path.write_text(text[:-20])  # the machine went down while the last line was written
    seen[:] = [None] * 5
    journal = Journal(path, "this")
    first = {train.records[i].image_id for i in range(3)}
    assert set(journal.done) == first
    assert detect_all(trained, train, proposals, TINY, tmp_path, journal=journal) == whole
    assert seen[5:] == [[3, 4], [5, 5]]
    assert len(Journal(path, "this").done) == 6
    assert json.loads(path.read_text().splitlines()[0]) == {"key": "this"}
    assert Journal(path, "that").done == {}  # other settings: nothing is taken over
