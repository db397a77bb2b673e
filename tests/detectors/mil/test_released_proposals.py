"""From a released proposal pickle to detections: the release's filter, and the whole way."""

import dataclasses
import pickle

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_mil import TINY

from bridge.proposals.official_pickles import import_official
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.detectors.mil.detect import detect_wsod
from weaksam_jax.detectors.mil.samples import MilSamples, load_boxes
from weaksam_jax.detectors.mil.train import train_wsod
from weaksam_jax.engine.mesh import data_mesh


def write_pickle(path, entries, ids, dtype=np.uint16):
    boxes = [np.asarray(entry).reshape(-1, 4).astype(dtype) for entry in entries]
    content = {"boxes": boxes, "scores": [np.ones(len(b)) for b in boxes], "indexes": ids}
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def released_filter(boxes, width, height, least):
    """Facts 20-wsod §3, one box at a time: [xmin, ymin, xmax, ymax], the last pixel inside."""
    seen, kept = set(), []
    for box in boxes:
        key = tuple(round(float(v)) for v in box)
        if key in seen:
            continue
        seen.add(key)
        x1, y1, x2, y2 = (
            min(max(float(v), 0), side - 1)
            for v, side in zip(box, (width, height, width, height), strict=True)
        )
        if x2 - x1 + 1 >= least and y2 - y1 + 1 >= least:
            kept.append((x1, y1, x2, y2))
    return kept


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(20, np.uint16), (2, np.float32)]))
def test_boxes_of_a_pickle_are_filtered_as_released(tmp_path_factory, seed, kind):
    (least, dtype), rng = kind, np.random.default_rng(seed)
    width, height = int(rng.integers(25, 90)), int(rng.integers(25, 90))
    count = int(rng.integers(0, 40))
    x = np.sort(rng.integers(0, width, (count, 2)), axis=1)
    y = np.sort(rng.integers(0, height, (count, 2)), axis=1)
    boxes = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
    boxes = np.concatenate([boxes, boxes[: count // 3]])  # doubles
    boxes = boxes[boxes.any(1)] if count else boxes.reshape(-1, 4)  # zeros stand for empty masks
    record = TagRecord(2008000008, "2008_000008.jpg", None, width, height, (0,))
    split = TagSplit("VOC2012", "trainval", ("cat",), (1,), (record,))
    folder = tmp_path_factory.mktemp("pickle")
    import_official(write_pickle(folder / "a.pkl", [boxes], [2008000008], dtype), split, folder)
    found, quality = load_boxes(folder, split, record, least)
    want = [
        (x1, y1, x2 + 1, y2 + 1) for x1, y1, x2, y2 in released_filter(boxes, width, height, least)
    ]
    assert sorted(map(tuple, found.tolist())) == sorted(want or [(0, 0, width, height)])
    assert not quality.any()


@pytest.mark.slow
def test_a_released_pickle_trains_and_detects(world, tmp_path):
    """The MIST dict for both splits; one image has boxes that are all too small."""
    rng, (train, test, _) = np.random.default_rng(0), world
    for split in (train, test):
        entries = []
        for record in split.records:
            corner = rng.integers(0, [record.width - 40, record.height - 40], (12, 2))
            entries.append(np.concatenate([corner, corner + rng.integers(20, 40, (12, 2))], 1))
        entries[0] = [[3, 3, 9, 9], [5, 5, 20, 12]]
        ids = [record.image_id for record in split.records]
        order = rng.permutation(len(ids))
        shuffled = [entries[i] for i in order], [ids[i] for i in order]
        import_official(write_pickle(tmp_path / "a.pkl", *shuffled), split, tmp_path / "store")
    tiny = dataclasses.replace(TINY, min_side=20.0, lighting=0.1, steps=2, max_proposals=256)
    samples = MilSamples(train, tmp_path / "store", tiny)
    first = train.records[0]
    assert samples.boxes[0].tolist() == [[0, 0, first.width, first.height]]
    mesh = data_mesh(jax.devices()[:1])
    params = train_wsod(train, tmp_path / "store", tiny, tmp_path / "wsod", mesh, 0)
    found = detect_wsod(params, test, tmp_path / "store", tiny, tmp_path / "wsod")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert {one["image_id"] for one in found} == {record.image_id for record in test.records}
    assert {one["category_id"] for one in found} == set(test.category_ids)
    assert all(0 < one["score"] < 1 for one in found)
