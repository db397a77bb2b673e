"""From a published pickle of proposals to detections: the official filter, and the whole way."""

import pickle
from dataclasses import replace

import jax
import numpy as np
import pytest
from configs import vary
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_mil import TINY, detect, train

from bridge.proposals.official_pickles import import_official
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.detectors.mil.samples import MilSamples, load_boxes


def write_pickle(path, entries, ids, dtype=np.uint16):
    boxes = [np.asarray(entry).reshape(-1, 4).astype(dtype) for entry in entries]
    content = {"boxes": boxes, "scores": [np.ones(len(b)) for b in boxes], "indexes": ids}
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def official_filter(boxes, width, height, least):
    """docs/provenance/mil.md, section 3, one box at a time: [xmin, ymin, xmax, ymax], the last
    pixel inside."""
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
def test_boxes_of_a_pickle_are_filtered_as_by_the_official_code(tmp_path_factory, seed, kind):
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
        (x1, y1, x2 + 1, y2 + 1) for x1, y1, x2, y2 in official_filter(boxes, width, height, least)
    ]
    assert sorted(map(tuple, found.tolist())) == sorted(want or [(0, 0, width, height)])
    assert not quality.any()


@pytest.mark.slow
def test_a_published_pickle_trains_and_detects(drawn, tmp_path):
    """The MIST dict for both splits; one image has boxes that are all too small."""
    rng, (training, test, _) = np.random.default_rng(0), drawn
    for split in (training, test):
        entries = []
        for record in split.records:
            corner = rng.integers(0, [record.width - 40, record.height - 40], (12, 2))
            entries.append(np.concatenate([corner, corner + rng.integers(20, 40, (12, 2))], 1))
        entries[0] = [[3, 3, 9, 9], [5, 5, 20, 12]]
        ids = [record.image_id for record in split.records]
        order = rng.permutation(len(ids))
        shuffled = [entries[i] for i in order], [ids[i] for i in order]
        import_official(write_pickle(tmp_path / "a.pkl", *shuffled), split, tmp_path / "store")
    config = vary(
        TINY,
        optim={"steps": 2},
        data={
            "augment": replace(TINY.data.augment, lighting=0.1),
            "max_proposals": 256,
            "min_side": 20.0,
        },
    )
    samples = MilSamples(training, tmp_path / "store", config)
    first = training.records[0]
    assert samples.boxes[0].tolist() == [[0, 0, first.width, first.height]]
    params = train(training, tmp_path / "store", config, tmp_path / "mil")
    found = detect(params, test, tmp_path / "store", config, tmp_path / "mil")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert {one["image_id"] for one in found} == {record.image_id for record in test.records}
    assert {one["category_id"] for one in found} == set(test.category_ids)
    assert all(0 < one["score"] < 1 for one in found)
