"""Test-time views against a loop in NumPy; what is told, refused and resumed."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny_mil import TINY

from weaksam_jax.boxes import decode, from_xywh, iou
from weaksam_jax.data.scales import padded_sizes
from weaksam_jax.data.views import View
from weaksam_jax.detectors.mil import detect
from weaksam_jax.detectors.mil.detect import detect_wsod
from weaksam_jax.detectors.mil.network import build_model, network_input
from weaksam_jax.detectors.mil.samples import MilSamples
from weaksam_jax.engine.journal import Journal
from weaksam_jax.engine.step import count_compilations
from weaksam_jax.errors import BadInput

VIEWS = dataclasses.replace(
    TINY,
    test_scales=tuple(padded_sizes(side, 96, 16) for side in (48, 64)),
    max_detections=15,
    every_class=False,
)


def loop_detections(apply, params, split, proposals, settings, index):
    """One image by hand: every view on its own, NumPy averaging, a loop for the NMS."""
    samples = MilSamples(split, proposals, settings, scales=settings.test_scales)
    record, own = split.records[index], samples.boxes[index][: settings.max_proposals]
    flips = (False, True) if settings.test_mirrored else (False,)
    all_scores, all_boxes = [], []
    for scale in range(len(settings.test_scales)):
        for mirrored in flips:
            shown = samples.show(index, slice(len(own)), View(scale, mirrored))
            batch = {name: value[None] for name, value in shown.items()}
            images, inside = network_input(settings, batch)
            _, outputs = apply({"params": params}, images, inside, batch["boxes"], batch["prior"])
            scores = np.zeros((len(own), len(split.classes)))
            deltas = np.zeros((len(own), len(split.classes), 4))
            for branch in range(3):
                logits = np.asarray(outputs.refine[0, branch], np.float64)[: len(own)]
                exp = np.exp(logits - logits.max(-1, keepdims=True))
                scores += (exp / exp.sum(-1, keepdims=True))[:, 1:] / 3
                deltas += np.asarray(outputs.deltas[0, branch], np.float64)[: len(own), 1:] / 3
            reference = np.repeat(shown["boxes"][: len(own), None], scores.shape[1], 1)
            moved = decode(deltas, reference) if settings.method == "mist" else reference
            height, width = shown["size"]
            if mirrored:
                moved = np.stack(
                    [width - moved[..., 2], moved[..., 1], width - moved[..., 0], moved[..., 3]], -1
                )
            moved = moved * np.tile([record.width / width, record.height / height], 2)
            all_boxes.append(np.clip(moved, 0, np.tile([record.width, record.height], 2)))
            all_scores.append(scores)
    assert len(all_scores) == len(flips) * len(settings.test_scales)
    scores, boxes = sum(all_scores) / len(all_scores), sum(all_boxes) / len(all_boxes)
    found = []
    for c in range(scores.shape[1]):
        kept = []
        for i in np.argsort(-scores[:, c]):
            if all(iou(boxes[i, c][None], boxes[j, c][None])[0, 0] <= settings.nms for j in kept):
                kept.append(i)
        found += [(scores[i, c], c, boxes[i, c]) for i in kept]
    return sorted(found, key=lambda f: -f[0])[: settings.max_detections]


def shaken(params):
    """The same network with larger outputs, so that views, branches and classes differ."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), params)


@pytest.mark.parametrize(
    "change", [{}, {"method": "oicr", "test_mirrored": False}], ids=["mist", "oicr"]
)
def test_detections_equal_the_loop_and_do_not_see_the_tags(world, trained, tmp_path, change):
    _, test, proposals = world
    settings, params = dataclasses.replace(VIEWS, **change), shaken(trained)
    with count_compilations("add_view") as compiled:
        results = detect_wsod(params, test, proposals, settings, tmp_path)
    groups = set(MilSamples(test, proposals, settings, scales=settings.test_scales).groups)
    canvases = {scale[group] for scale in settings.test_scales for group in groups}
    assert len(compiled) == len(canvases) > 1
    apply = jax.jit(build_model(settings, len(test.classes)).apply)
    for index, record in enumerate(test.records):
        mine = [one for one in results if one["image_id"] == record.image_id]
        expected = loop_detections(apply, params, test, proposals, settings, index)
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
    assert detect_wsod(params, blind, proposals, settings, tmp_path) == results


def test_the_best_of_every_class_is_kept_when_asked(world, trained, tmp_path):
    _, test, proposals = world
    params = shaken(trained)
    few = dataclasses.replace(TINY, max_detections=len(test.classes), every_class=True)
    kept = detect_wsod(params, test, proposals, few, tmp_path)
    everything = dataclasses.replace(TINY, max_detections=500)
    best = {}
    for one in detect_wsod(params, test, proposals, everything, tmp_path):
        key = one["image_id"], one["category_id"]
        best[key] = max(best.get(key, 0), one["score"])
    assert {(one["image_id"], one["category_id"]): one["score"] for one in kept} == best
    plain = detect_wsod(
        params, test, proposals, dataclasses.replace(few, every_class=False), tmp_path
    )
    assert len({(one["image_id"], one["category_id"]) for one in plain}) < len(best)


def test_left_out_proposals_are_counted_once(world, trained, tmp_path, capsys):
    _, test, proposals = world
    counts = [len(boxes) for boxes in MilSamples(test, proposals, TINY).boxes]
    limit = min(counts) - 1
    settings = dataclasses.replace(TINY, max_proposals=limit)
    detect_wsod(trained, test, proposals, settings, tmp_path)
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "warning" in one]
    assert f"3 of 3 images have more than {limit} proposals" in line
    assert f"{sum(counts) - 3 * limit} are left out" in line and str(max(counts)) in line
    whole = dataclasses.replace(TINY, max_proposals=2048)
    assert MilSamples(test, proposals, whole).padded == 256
    detect_wsod(trained, test, proposals, whole, tmp_path)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 32}, r"is \[16, 8\], VOC2007 \(7 classes\) and these settings need \[32, 8\]"),
        ({"neck": 8}, "has no necks_0/bias"),
    ],
)
def test_parameters_of_another_network_are_refused(world, trained, tmp_path, change, message):
    _, test, proposals = world
    with pytest.raises(BadInput, match=message) as caught:
        detect_wsod(trained, test, proposals, dataclasses.replace(TINY, **change), tmp_path)
    assert caught.value.path == "weights"


def test_parameters_without_a_place_are_refused(world, trained, tmp_path):
    _, test, proposals = world
    with pytest.raises(BadInput, match="has extra/kernel, for which VOC2007"):
        params = {**trained, "extra": {"kernel": np.zeros(2)}}
        detect_wsod(params, test, proposals, TINY, tmp_path)


def test_parameters_for_other_classes_are_refused(world, trained, tmp_path):
    _, test, proposals = world
    more = dataclasses.replace(test, classes=(*test.classes, "unicorn"), category_ids=range(1, 99))
    with pytest.raises(BadInput, match=rf"{len(more.classes)} classes"):
        detect_wsod(trained, more, proposals, TINY, tmp_path)


def test_scales_that_do_not_fit_together_are_refused(world):
    _, test, proposals = world
    scales = (((64, 64),), ((64, 64), (32, 32)))
    with pytest.raises(BadInput, match="have 1 and 2 canvases"):
        MilSamples(test, proposals, TINY, scales=scales)


def test_a_killed_detection_goes_on(world, trained, tmp_path, monkeypatch):
    train, _, proposals = world
    whole = detect_wsod(trained, train, proposals, TINY, tmp_path)
    path, seen = tmp_path / "unfinished.jsonl", []
    original = detect._Detector.__call__

    def dies(self, chosen):
        seen.append(chosen)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(self, chosen)

    monkeypatch.setattr(detect._Detector, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        detect_wsod(trained, train, proposals, TINY, tmp_path, journal=Journal(path, "this"))
    text = path.read_text()
    assert len(text.splitlines()) == 3  # the key and two batches
    path.write_text(text[:-20])  # the machine went down while the last line was written
    seen[:] = [None] * 5
    journal = Journal(path, "this")
    first = {train.records[i].image_id for i in range(2)}
    assert set(journal.done) == first
    assert detect_wsod(trained, train, proposals, TINY, tmp_path, journal=journal) == whole
    assert seen[5:] == [[2, 3], [4, 5]]
    assert len(Journal(path, "this").done) == 6
    assert json.loads(path.read_text().splitlines()[0]) == {"key": "this"}
    assert Journal(path, "that").done == {}  # other settings: nothing is taken over
