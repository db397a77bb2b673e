"""The MIL stage end to end on a few drawn images, with proposals that know nothing of the truth."""

import dataclasses

import flax.traverse_util
import jax
import numpy as np
import pytest
from tiny_mil import TINY

from weaksam_jax.backbones.lite0 import Lite0
from weaksam_jax.boxes import from_xywh
from weaksam_jax.data.store import SOURCES, Proposals, proposal_path, write_proposals
from weaksam_jax.data.views import View
from weaksam_jax.detectors.mil.detect import detect_wsod
from weaksam_jax.detectors.mil.evidence import box_cosine
from weaksam_jax.detectors.mil.samples import MilSamples, load_boxes
from weaksam_jax.detectors.mil.train import train_wsod
from weaksam_jax.engine.mesh import data_mesh
from weaksam_jax.engine.step import count_compilations
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_arrays


def same_bits(one, other):
    one, other = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (one, other))
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_a_killed_training_ends_in_the_same_bits(world, tmp_path, monkeypatch):
    train, _, proposals = world
    mesh = data_mesh(jax.devices()[:1])
    with count_compilations() as compiled:
        whole = train_wsod(train, proposals, TINY, tmp_path / "a", mesh, 3)
    assert len(compiled) == 2  # a canvas and two phases

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
        train_wsod(train, proposals, TINY, tmp_path / "b", mesh, 3)
    monkeypatch.setattr(MilSamples, "__call__", original)
    resumed = train_wsod(train, proposals, TINY, tmp_path / "b", mesh, 3)
    assert same_bits(whole, resumed)
    other_seed = train_wsod(train, proposals, TINY, tmp_path / "c", mesh, 4)
    assert not same_bits(whole, other_seed)


def test_frozen_features_are_cached_and_refilled(world, tmp_path):
    train, test, proposals = world
    settings = dataclasses.replace(
        TINY,
        backbone="lite0",
        neck=8,
        pretrain_steps=0,
        steps=2,
        scales=(((64, 64),), ((32, 32),)),
    )
    image = np.zeros((1, 64, 64, 3), np.float32)
    weights = jax.device_get(jax.jit(Lite0(head=True).init)(jax.random.key(0), image))["params"]
    mesh = data_mesh(jax.devices()[:1])

    def run(folder):
        params = train_wsod(train, proposals, settings, folder, mesh, 0, weights)
        detect_wsod(params, test, proposals, settings, folder, weights)
        return params

    params = run(tmp_path / "a")
    files = sorted((tmp_path / "a" / "features" / "trainval").rglob("*.safetensors"))
    assert len(files) == len(train.records) * 4 and "backbone" not in params
    content, stamps = files[3].read_bytes(), [f.stat().st_mtime_ns for f in files]
    files[3].unlink()
    again = train_wsod(train, proposals, settings, tmp_path / "a", mesh, 0, weights)
    assert same_bits(params, again) and files[3].read_bytes() == content
    others = [i for i in range(len(files)) if i != 3]
    assert [files[i].stat().st_mtime_ns for i in others] == [stamps[i] for i in others]
    weights["stem"]["bias"] = weights["stem"]["bias"] + 0.1  # other weights: none of it is reused
    detect_wsod(params, test, proposals, settings, tmp_path / "a", weights)
    assert len(list((tmp_path / "a" / "features" / "test").iterdir())) == 2
    with pytest.raises(BadInput, match="backbone"):
        train_wsod(train, proposals, settings, tmp_path / "b", mesh, 0)


def test_boxes_are_clean_and_sources_take_turns(world, tmp_path):
    train = world[0]
    record = train.records[0]
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
    write_proposals(tmp_path, train.split, proposals, {})
    found, quality = load_boxes(tmp_path, train, record, 8.0)
    expected = [[10, 10, 40, 50], [20, 20, 60, 60], [0, 0, 30, 30], [30, 30, 70, 70]]
    # Source 1 has rows 0, 1, 2 and source 0 rows 3 to 6; of equal places the first row leads.
    assert found.tolist() == expected
    np.testing.assert_allclose(quality, ((told + stability) / 2)[[0, 4, 2, 6]], rtol=1e-6)
    search = dataclasses.replace(
        proposals, source=np.full(len(rows), SOURCES.index("selective_search"))
    )
    write_proposals(tmp_path, train.split, search, {})
    assert not load_boxes(tmp_path, train, record, 8.0)[1].any()
    write_proposals(tmp_path, train.split, proposals.select(np.array([3, 5])), {})
    alone, quality = load_boxes(tmp_path, train, record, 8.0)
    assert alone.tolist() == [[0, 0, width, height]] and quality.tolist() == [0]


def test_an_uncertain_image_has_no_valid_boxes_in_training_alone(world):
    train, _, proposals = world
    records = (dataclasses.replace(train.records[0], tags=(), uncertain=True), *train.records[1:])
    samples = MilSamples(dataclasses.replace(train, records=records), proposals, TINY)
    rng = np.random.default_rng(0)
    assert not samples(0, (samples.groups[0], 0), rng)["valid"].any()
    assert samples(1, (samples.groups[1], 0), rng)["valid"].any()
    assert samples.show(0, slice(24), View(0, False))["valid"].any()  # at test it is as any other


def test_missing_proposals_are_named(world, tmp_path):
    train, _, _ = world
    with pytest.raises(BadInput, match=str(train.records[0].image_id)):
        MilSamples(train, tmp_path / "nowhere", TINY)


def write_clues(root, split, cells=(20, 24)):
    """Random fine maps of every image's tags; {image id: maps}."""
    rng, maps = np.random.default_rng(1), {}
    for record in split.records:
        ids = np.asarray(record.tags, np.int32)
        maps[record.image_id] = rng.random((len(ids), *cells)).astype(np.float16)
        arrays = {"fine": maps[record.image_id], "class_ids": ids}
        write_arrays(proposal_path(root, split.split, record.image_id), arrays, {})
    return maps


def in_cells(boxes, record, cells=(20, 24)):
    return boxes * np.tile([cells[1] / record.width, cells[0] / record.height], 2)


def test_clues_join_the_prior(world, tmp_path):
    train, _, proposals = world
    settings = dataclasses.replace(TINY, clue_evidence=5.0)
    maps = write_clues(tmp_path, train)
    samples = MilSamples(train, proposals, settings, tmp_path)
    record, shape = train.records[2], (samples.groups[2], 0)
    sample = samples(2, shape, np.random.default_rng(5))
    plain = MilSamples(train, proposals, TINY)(2, shape, np.random.default_rng(5))
    gained = sample["prior"] - plain["prior"]
    chosen = np.sort(np.random.default_rng(5).permutation(len(samples.boxes[2]))[:24])
    boxes = in_cells(samples.boxes[2][chosen], record)
    want = np.zeros_like(gained)
    want[: len(boxes), record.tags] = 5 * box_cosine(maps[record.image_id], boxes)
    np.testing.assert_allclose(gained, want, atol=1e-5)
    assert want[: len(boxes), record.tags].all()
    proposal_path(tmp_path, train.split, record.image_id).unlink()
    with pytest.raises(BadInput, match="clue_evidence"):
        MilSamples(train, proposals, settings, tmp_path)
    with pytest.raises(BadInput, match="clues_root"):
        MilSamples(train, proposals, settings)


def test_clues_multiply_the_scores_at_test(world, trained, tmp_path):
    train, _, proposals = world
    everything = dataclasses.replace(TINY, nms=1.0, max_detections=500, method="oicr")
    maps = write_clues(tmp_path / "clues", train)
    found = {}
    for power in (0.0, 2.0):
        settings = dataclasses.replace(everything, clue_power=power)
        rows = detect_wsod(
            trained, train, proposals, settings, tmp_path, clues_root=tmp_path / "clues"
        )
        found[power] = {(r["image_id"], r["category_id"], *r["bbox"]): r["score"] for r in rows}
    compared = 0
    for record in train.records:
        for label, one in zip(record.tags, maps[record.image_id], strict=True):
            for key, score in found[0.0].items():
                if key[:2] == (record.image_id, train.category_ids[label]):
                    box = in_cells(from_xywh(np.array([key[2:]])), record)
                    factor = box_cosine(one[None], box)[0, 0] ** 2
                    assert found[2.0][key] == pytest.approx(score * factor, rel=0.01, abs=2e-6)
                    compared += 1
    assert compared > 50
