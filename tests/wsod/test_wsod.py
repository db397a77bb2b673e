"""The MIL stage end to end on a few drawn images, with proposals that know nothing of the truth."""

import dataclasses

import flax.traverse_util
import jax
import numpy as np
import pytest

from weaksam_jax.boxes import decode, from_xywh, iou
from weaksam_jax.data.datasets import open_tags
from weaksam_jax.data.mini import write_mini
from weaksam_jax.data.store import SOURCES, Proposals, proposal_path, write_proposals
from weaksam_jax.engine.mesh import data_mesh
from weaksam_jax.engine.step import count_compilations
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_arrays
from weaksam_jax.models.lite0 import Lite0
from weaksam_jax.wsod.clue_evidence import box_cosine
from weaksam_jax.wsod.detect import detect_wsod
from weaksam_jax.wsod.network import build_model, network_input
from weaksam_jax.wsod.samples import MilSamples, load_boxes
from weaksam_jax.wsod.settings import WsodSettings
from weaksam_jax.wsod.train import train_wsod
from weaksam_jax.wsod.views import View, fitted_size, restore_boxes

TINY = WsodSettings(
    width=16,
    pool_size=3,
    scales=(((64, 64),),),
    max_proposals=24,
    pretrain_steps=2,
    steps=3,
    batch=2,
    test_batch=2,
    warmup=1,
    checkpoint_every=1,
)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """The same step is compiled by many tests: keep it on disk for this module."""
    names = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("xla")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(train split, test split, root of the proposals)."""
    root = tmp_path_factory.mktemp("wsod")
    data = write_mini(root / "data", 0, 6, 3, progress=False)
    rng = np.random.default_rng(0)
    splits = [open_tags(data, name) for name in ("trainval", "test")]
    for split in splits:
        for record in split.records:
            write_random(root / "proposals", split.split, record, rng)
    return *splits, root / "proposals"


def write_random(root, split, record, rng, count=30):
    corner = rng.uniform(0, 80, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(9, 60, (count, 2))], 1)
    ones = np.ones(count, np.float32)
    proposals = Proposals(
        record.image_id, record.height, record.width, boxes.astype(np.float32),
        rng.integers(0, 2, count), np.full(count, -1), np.zeros(count), ones, ones, None,
    )  # fmt: skip
    write_proposals(root, split, proposals, {})


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


def loop_detections(params, split, proposals, settings, index):
    """One image by hand: every view on its own, NumPy averaging, a loop for the NMS."""
    samples = MilSamples(split, proposals, settings)
    record, own = split.records[index], samples.boxes[index][: settings.max_proposals]
    model = build_model(settings, len(split.classes))
    scores, boxes = [], []
    for mirrored in (False, True):
        shown = samples.show(index, slice(len(own)), View(0, mirrored))
        batch = {name: value[None] for name, value in shown.items()}
        images, inside = network_input(settings, batch)
        _, outputs = model.apply({"params": params}, images, inside, batch["boxes"], batch["prior"])
        logits = np.asarray(outputs.refine[0], np.float64)[:, : len(own)]
        exp = np.exp(logits - logits.max(-1, keepdims=True))
        scores.append((exp / exp.sum(-1, keepdims=True)).mean(0)[:, 1:])
        deltas = np.asarray(outputs.deltas[0]).mean(0)[: len(own), 1:]
        moved = decode(deltas, shown["boxes"][: len(own), None].repeat(deltas.shape[1], 1))
        height, width = shown["size"]
        if mirrored:
            moved[..., [0, 2]] = width - moved[..., [2, 0]]
        moved = moved * np.tile([record.width / width, record.height / height], 2)
        limit = np.tile([record.width, record.height], 2)
        boxes.append(np.clip(moved, 0, limit))
    scores, boxes = np.mean(scores, 0), np.mean(boxes, 0)
    found = []
    for c in range(scores.shape[1]):
        kept = []
        for i in np.argsort(-scores[:, c]):
            if all(iou(boxes[i, c][None], boxes[j, c][None])[0, 0] <= settings.nms for j in kept):
                kept.append(i)
        found += [(scores[i, c], c, boxes[i, c]) for i in kept]
    return sorted(found, key=lambda f: -f[0])[: settings.max_detections]


def test_detections_equal_the_loop_and_do_not_see_the_tags(world, tmp_path):
    train, test, proposals = world
    mesh = data_mesh(jax.devices()[:1])
    params = train_wsod(train, proposals, TINY, tmp_path, mesh, 0)
    results = detect_wsod(params, test, proposals, TINY, tmp_path)
    for index, record in enumerate(test.records):
        mine = [one for one in results if one["image_id"] == record.image_id]
        expected = loop_detections(params, test, proposals, TINY, index)
        assert len(mine) == len(expected) > 10
        scores = [score for score, _, _ in expected]
        np.testing.assert_allclose([one["score"] for one in mine], scores, atol=2e-5)
        best = {(test.category_ids[label], tuple(np.round(box))) for _, label, box in expected[:20]}
        corners = from_xywh(np.array([one["bbox"] for one in mine]))
        found = {
            (one["category_id"], tuple(np.round(box)))
            for one, box in zip(mine, corners, strict=True)
        }
        assert len(best & found) >= 0.8 * len(best)  # rounding and near-ties aside
        assert {one["file_name"] for one in mine} == {record.file_name}
    untagged = tuple(dataclasses.replace(record, tags=()) for record in test.records)
    blind = dataclasses.replace(test, records=untagged)
    assert detect_wsod(params, blind, proposals, TINY, tmp_path) == results


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


def test_clues_multiply_the_scores_at_test(world, tmp_path):
    train, _, proposals = world
    mesh = data_mesh(jax.devices()[:1])
    params = train_wsod(train, proposals, TINY, tmp_path, mesh, 0)
    everything = dataclasses.replace(TINY, nms=1.0, max_detections=500, method="oicr")
    maps = write_clues(tmp_path / "clues", train)
    found = {}
    for power in (0.0, 2.0):
        settings = dataclasses.replace(everything, clue_power=power)
        rows = detect_wsod(
            params, train, proposals, settings, tmp_path, clues_root=tmp_path / "clues"
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


@pytest.mark.parametrize("mirrored", [False, True])
def test_restoring_boxes_is_the_inverse_of_showing_them(world, mirrored):
    train, _, proposals = world
    samples = MilSamples(train, proposals, TINY)
    record, boxes = train.records[1], samples.boxes[1][:10]
    shown = samples.show(1, slice(10), View(0, mirrored))
    assert shown["valid"].sum() == 10
    assert (shown["prior"][:10] == TINY.evidence).all() and not shown["prior"][10:].any()
    back = restore_boxes(
        shown["boxes"][:10], shown["size"], np.float32([record.height, record.width]), mirrored
    )
    np.testing.assert_allclose(back, boxes, atol=1e-3)
    size = fitted_size(record, shown["image"].shape[:2])
    assert tuple(shown["size"]) == size  # what cached maps assume
