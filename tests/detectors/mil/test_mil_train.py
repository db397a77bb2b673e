"""Training end to end on a few drawn images, with proposals that know nothing of the truth."""

import dataclasses

import jax
import numpy as np
import pytest
from configs import vary
from tiny_mil import TINY, detect, train

from weaksam_jax.backbones.lite0 import Lite0
from weaksam_jax.boxes import from_xywh
from weaksam_jax.data.store import (
    SOURCES,
    Proposals,
    proposal_path,
    write_proposals,
    write_stored,
)
from weaksam_jax.data.views import View
from weaksam_jax.detectors import load_detector, save_detector
from weaksam_jax.detectors.mil import MilDetector
from weaksam_jax.detectors.mil.evidence import box_cosine
from weaksam_jax.detectors.mil.samples import MilSamples, load_boxes
from weaksam_jax.engine.step import count_compilations
from weaksam_jax.engine.weights import flatten, load_params, save_params
from weaksam_jax.errors import BadInput


def same_bits(one, other):
    one, other = (flatten(tree) for tree in (one, other))
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_a_killed_training_ends_in_the_same_bits(drawn, tmp_path, monkeypatch):
    split, _, proposals = drawn
    with count_compilations() as compiled:
        whole = train(split, proposals, TINY, tmp_path / "a", 3)
    assert len(compiled) == 2  # a padded size and two phases

    class Killed(Exception):
        pass

    original, calls = MilSamples.__call__, []

    def dies(self, *arguments):
        calls.append(1)
        if len(calls) > 7:
            raise Killed
        return original(self, *arguments)

    monkeypatch.setattr(MilSamples, "__call__", dies)
    with pytest.raises(Killed):
        train(split, proposals, TINY, tmp_path / "b", 3)
    monkeypatch.setattr(MilSamples, "__call__", original)
    resumed = train(split, proposals, TINY, tmp_path / "b", 3)
    assert same_bits(whole, resumed)
    other_seed = train(split, proposals, TINY, tmp_path / "c", 4)
    assert not same_bits(whole, other_seed)


LITE = vary(
    TINY,
    model={"backbone": "lite0", "neck": 8},
    optim={"frozen": ("*",), "pretrain_steps": 0, "steps": 2},
    data={"scales": (((64, 64),), ((32, 32),)), "cache_maps": True},
)


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    """A file of fresh weights of EfficientNet-Lite0."""
    image = np.zeros((1, 64, 64, 3), np.float32)
    params = jax.jit(Lite0(head=True).init)(jax.random.key(0), image)["params"]
    path = tmp_path_factory.mktemp("lite0") / "lite0.safetensors"
    save_params(path, params, {"backbone": "lite0"})
    return path


def test_frozen_features_are_cached_and_refilled(drawn, lite0, tmp_path):
    split, test, proposals = drawn
    config, folder = vary(LITE, optim={"init": str(lite0)}), tmp_path / "a"
    params = train(split, proposals, config, folder)
    found = detect(params, test, proposals, config, folder)
    files = sorted((folder / "features" / "trainval").rglob("*.safetensors"))
    assert len(files) == len(split.records) * 4
    assert same_bits(params["backbone"], load_params(lite0))
    content, stamps = files[3].read_bytes(), [f.stat().st_mtime_ns for f in files]
    files[3].unlink()
    again = train(split, proposals, config, folder)
    assert same_bits(params, again) and files[3].read_bytes() == content
    others = [i for i in range(len(files)) if i != 3]
    assert [files[i].stat().st_mtime_ns for i in others] == [stamps[i] for i in others]
    stem = params["backbone"]["stem"]
    moved = {**params["backbone"], "stem": {**stem, "bias": stem["bias"] + np.float32(0.1)}}
    other = detect({**params, "backbone": moved}, test, proposals, config, folder)
    assert other != found  # other weights: none of the stored maps is used again
    assert len(list((folder / "features" / "test").iterdir())) == 2
    with pytest.raises(BadInput, match="backbone"):
        train(split, proposals, LITE, tmp_path / "b")


def test_a_detector_of_cached_maps_is_whole_and_sees_photographs(drawn, lite0, tmp_path):
    """What the cache rounds to half precision, and where it is kept, is all that differs."""
    split, test, proposals = drawn
    config = vary(LITE, optim={"init": str(lite0)})
    params = train(split, proposals, config, tmp_path)
    path = tmp_path / "detector.safetensors"
    save_detector(path, MilDetector(config, split.classes), params)
    detector, loaded = load_detector(path)
    assert detector == MilDetector(config, split.classes) and same_bits(loaded, params)
    everything = {"max_detections": 500, "nms": 1.0}
    found = {}
    for cached in (True, False):
        shown = vary(detector.config, data={"cache_maps": cached}, test=everything)
        folder = tmp_path / str(cached)
        rows = detect(loaded, test, proposals, shown, folder)
        assert (folder / "features").exists() == cached
        found[cached] = {(row["image_id"], row["category_id"]): [] for row in rows}
        for row in rows:
            found[cached][row["image_id"], row["category_id"]].append(row["score"])
    assert found[True].keys() == found[False].keys()
    for key, scores in found[True].items():
        np.testing.assert_allclose(scores, found[False][key], rtol=1e-3)


def test_cached_maps_belong_to_a_backbone_that_keeps_its_weights():
    with pytest.raises(BadInput, match=r"cache_maps.*optim\.frozen"):
        vary(LITE, optim={"frozen": ("stem",)})


def test_boxes_are_clean_and_sources_take_turns(drawn, tmp_path):
    split = drawn[0]
    record = split.records[0]
    width, height = record.width, record.height
    rows = [
        ([10, 10, 40, 50], 1),
        ([10.2, 10.1, 40.3, 49.9], 1),  # the same to the pixel
        ([-20, -20, 30, 30], 1),
        ([5, 5, 12, 90], 0),  # too narrow
        ([20, 20, 60, 60], 0),
        ([width - 5, 10, width + 50, 90], 0),  # too narrow once cut
        ([30, 30, 70, 70], 0),
    ]
    boxes = np.array([box for box, _ in rows], np.float32)
    flat = np.ones(len(rows), np.float32)
    source = np.array([s for _, s in rows])
    told, stability = np.linspace(0.2, 0.8, len(rows)), np.linspace(1, 0.4, len(rows)) ** 2
    proposals = Proposals(
        record.image_id, height, width, boxes, source, flat, flat, told, stability, None
    )
    write_proposals(tmp_path, split.split, proposals, {})
    found, quality = load_boxes(tmp_path, split, record, 8.0)
    expected = [[10, 10, 40, 50], [20, 20, 60, 60], [0, 0, 30, 30], [30, 30, 70, 70]]
    # Source 1 has rows 0, 1, 2 and source 0 rows 3 to 6; of equal places the first row leads.
    assert found.tolist() == expected
    np.testing.assert_allclose(quality, ((told + stability) / 2)[[0, 4, 2, 6]], rtol=1e-6)
    search = dataclasses.replace(
        proposals, source=np.full(len(rows), SOURCES.index("selective_search"))
    )
    write_proposals(tmp_path, split.split, search, {})
    assert not load_boxes(tmp_path, split, record, 8.0)[1].any()
    write_proposals(tmp_path, split.split, proposals.select(np.array([3, 5])), {})
    alone, quality = load_boxes(tmp_path, split, record, 8.0)
    assert alone.tolist() == [[0, 0, width, height]] and quality.tolist() == [0]


def test_an_uncertain_image_has_no_valid_boxes_in_training_alone(drawn):
    split, _, proposals = drawn
    records = (dataclasses.replace(split.records[0], tags=(), uncertain=True), *split.records[1:])
    samples = MilSamples(dataclasses.replace(split, records=records), proposals, TINY)
    rng = np.random.default_rng(0)
    assert not samples(0, (samples.buckets[0], 0), rng)["valid"].any()
    assert samples(1, (samples.buckets[1], 0), rng)["valid"].any()
    assert samples.show(0, slice(24), View(0, False))["valid"].any()  # at test it is as any other


def test_missing_proposals_are_named(drawn, tmp_path):
    split, _, _ = drawn
    with pytest.raises(BadInput, match=str(split.records[0].image_id)):
        MilSamples(split, tmp_path / "nowhere", TINY)


def write_clues(root, split, cells=(20, 24)):
    """Random fine maps of every image's tags; {image id: maps}."""
    rng, maps = np.random.default_rng(1), {}
    for record in split.records:
        ids = np.asarray(record.tags, np.int32)
        maps[record.image_id] = rng.random((len(ids), *cells)).astype(np.float16)
        arrays = {"fine": maps[record.image_id], "class_ids": ids}
        write_stored(root, split.split, record.image_id, arrays=arrays, metadata={})
    return maps


def in_cells(boxes, record, cells=(20, 24)):
    return boxes * np.tile([cells[1] / record.width, cells[0] / record.height], 2)


def test_clues_join_the_prior(drawn, tmp_path):
    split, _, proposals = drawn
    config = vary(TINY, data={"clue_evidence": 5.0})
    maps = write_clues(tmp_path, split)
    samples = MilSamples(split, proposals, config, clues_root=tmp_path)
    record, shape = split.records[2], (samples.buckets[2], 0)
    sample = samples(2, shape, np.random.default_rng(5))
    plain = MilSamples(split, proposals, TINY)(2, shape, np.random.default_rng(5))
    gained = sample["prior"] - plain["prior"]
    chosen = np.sort(np.random.default_rng(5).permutation(len(samples.boxes[2]))[:24])
    boxes = in_cells(samples.boxes[2][chosen], record)
    want = np.zeros_like(gained)
    want[: len(boxes), record.tags] = 5 * box_cosine(maps[record.image_id], boxes)
    np.testing.assert_allclose(gained, want, atol=1e-5)
    assert want[: len(boxes), record.tags].all()
    proposal_path(tmp_path, split.split, record.image_id).unlink()
    with pytest.raises(BadInput, match="clue_evidence"):
        MilSamples(split, proposals, config, clues_root=tmp_path)
    with pytest.raises(BadInput, match="clues_root"):
        MilSamples(split, proposals, config)


def test_clues_multiply_the_scores_at_test(drawn, trained, tmp_path):
    split, _, proposals = drawn
    everything = {"nms": 1.0, "max_detections": 500}
    maps = write_clues(tmp_path / "clues", split)
    found = {}
    for power in (0.0, 2.0):
        test = {**everything, "clue_power": power}
        config = vary(TINY, model={"method": "oicr"}, test=test)
        rows = detect(trained, split, proposals, config, tmp_path, clues_root=tmp_path / "clues")
        found[power] = {(r["image_id"], r["category_id"], *r["bbox"]): r["score"] for r in rows}
    compared = 0
    for record in split.records:
        for label, one in zip(record.tags, maps[record.image_id], strict=True):
            for key, score in found[0.0].items():
                if key[:2] == (record.image_id, split.category_ids[label]):
                    box = in_cells(from_xywh(np.array([key[2:]])), record)
                    factor = box_cosine(one[None], box)[0, 0] ** 2
                    assert found[2.0][key] == pytest.approx(score * factor, rel=0.01, abs=2e-6)
                    compared += 1
    assert compared > 50
