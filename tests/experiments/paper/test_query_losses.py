"""Losses of DINO's queries against their pseudo boxes, and the command on a tiny run."""

import json
from functools import partial

import jax
import numpy as np
import pytest
import torch
from configs import vary
from scipy.optimize import linear_sum_assignment
from small_dino import SMALL
from test_drop_figures import pseudo, save_mil
from tiny_pipeline import write_run

from experiments.paper.drop_figures import DropFigures, _Work, main, train_until
from experiments.paper.loss_report import table
from experiments.paper.query_losses import L1_EDGES, RANK_EDGES, Queries, _losses, sample, summary
from experiments.paper.roi_losses import Judge, batches, unaugmented
from experiments.pipeline.run import open_run
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags, open_truth
from weaksam_jax.data.mini_set import write_mini
from weaksam_jax.detectors import save_detector
from weaksam_jax.detectors.dino import Dino
from weaksam_jax.detectors.dino.loss_config import QueryDropConfig
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_json
from weaksam_jax.run_folder import RunFolder

TINY = vary(
    SMALL,
    model={"encoder_layers": 1, "decoder_layers": 1},
    data={"scales": (((64, 64),),)},
    loss={"denoising": None},
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """(folder of the data set, tags, truth, parameters of an untrained DINO)."""
    data = write_mini(tmp_path_factory.mktemp("queries"), 0, 5, 1, progress=False)
    split, truth = open_tags(data, "trainval"), open_truth(data, "trainval")
    example = unaugmented(pseudo(truth, 0.0), split, TINY).example()
    params = Dino(TINY, split.classes).init(jax.random.key(0), example)
    return data, split, truth, jax.device_get(params)


@pytest.fixture(scope="module")
def found(toy):
    """The queries for true boxes."""
    _, split, truth, params = toy
    samples = unaugmented(pseudo(truth, 0.0), split, TINY)
    return sample(Dino(TINY, split.classes), params, samples, judge=Judge(truth))


def test_every_pseudo_box_has_one_query_and_true_ones_are_no_errors(toy, found):
    truth = toy[2]
    boxes = sum(len(record.boxes) for record in truth.records)
    assert 0 < len(found.cls) <= boxes and not found.wrong.any()
    images = sum(len(record.boxes) > 0 for record in truth.records)
    queries = min(TINY.model.queries, 8 * 8 + 4 * 4 + 2 * 2 + 1)
    assert len(found.cls) + len(found.cls_background) == images * queries
    assert (found.cls > 0).all() and (found.l1 >= 0).all()
    assert ((found.rank >= 0) & (found.rank < 1)).all() and found.kept_background.all()


def test_losses_are_those_of_scipys_matching_and_torchs_cross_entropy(toy, found):
    """Of all batches, with the costs written out; the image that a last batch repeats counts
    once."""
    _, split, truth, params = toy
    detector, samples = Dino(TINY, split.classes), unaugmented(pseudo(truth, 0.0), split, TINY)
    run = jax.jit(lambda batch: detector.network.apply(
        {"params": params}, detector.normalised(batch), batch["size"]
    ))  # fmt: skip
    losses = []
    for batch in batches(samples, TINY.optim.batch_size):
        ids = batch.pop("image_id")
        heads = jax.device_get(run(batch))
        for row in range(len(np.unique(ids))):
            losses += list(by_hand(heads.logits[-1][row], heads.boxes[-1][row], batch, row))
    np.testing.assert_allclose(sorted(found.cls), sorted(losses), rtol=1e-4)


def by_hand(logits, boxes, batch, row):
    """The unweighted classification loss of every matched query of an image."""
    valid, (height, width) = batch["valid"][row], batch["size"][row]
    scale = torch.tensor([width, height, width, height], dtype=torch.float64)
    logits, boxes = (torch.tensor(one, dtype=torch.float64) for one in (logits, boxes))
    wanted = torch.tensor(batch["boxes"][row][valid], dtype=torch.float64)
    labels = batch["labels"][row][valid]
    share = torch.sigmoid(logits)
    there = 0.25 * (1 - share) ** 2 * -(share + 1e-12).log()
    absent = 0.75 * share**2 * -(1 - share + 1e-12).log()
    pixels = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    centres = torch.cat([(wanted[:, :2] + wanted[:, 2:]) / 2, wanted[:, 2:] - wanted[:, :2]], 1)
    cost = 2 * (there - absent)[:, labels] + 5 * torch.cdist(boxes, centres / scale, p=1)
    cost -= 2 * giou(pixels * scale, wanted)
    for query, thing in zip(*linear_sum_assignment(cost.numpy()), strict=True):
        target = torch.zeros(logits.shape[1], dtype=torch.float64)
        target[labels[thing]] = 1
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits[query], target)
        yield float(entropy) * len(target)


def giou(a, b):
    a, b = a[:, None], b[None]
    inter = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(0)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    area = [(one[..., 2:] - one[..., :2]).prod(-1) for one in (a, b)]
    inter, hull = inter.prod(-1), hull.prod(-1)
    union = sum(area) - inter
    return inter / union - (hull - union) / hull


def test_images_that_a_last_batch_repeats_are_not_ranked(toy):
    """Background queries are ranked too: with the repeated ones, other ones would be dropped."""
    _, split, truth, params = toy
    drop = QueryDropConfig(percentile=60.0, background=True)
    detector = Dino(vary(TINY, loss={"drop": drop}), split.classes)
    samples = unaugmented(pseudo(truth, 0.0), split, TINY)
    *_, batch = batches(samples, TINY.optim.batch_size)
    once = np.arange(2) < len(np.unique(batch.pop("image_id")))
    assert once.tolist() == [True, False], "5 images by 2"
    batch["valid"] &= once[:, None]
    kept = np.asarray(jax.jit(partial(_losses, detector))(params, batch, once).kept)
    assert np.sum(~kept[0]) == int(0.4 * TINY.model.queries) and kept[1].all()


def queries(**changes):
    """Ten matched queries, the worst of which is dropped, and two of background."""
    made = {
        "cls": np.arange(10, dtype=np.float32),
        "l1": np.full(10, 0.25, np.float32),
        "rank": np.arange(10) / 10,
        "kept": np.arange(10) < 9,
        "wrong": np.arange(10) >= 8,
        "cls_background": np.zeros(2, np.float32),
        "kept_background": np.ones(2, bool),
    }
    return Queries(**{**made, **changes})


def test_intervals_and_dropped_shares_by_hand():
    row = summary(queries(), TINY)
    assert [one["from"] for one in row["rank"]] == list(RANK_EDGES)
    assert [one["queries"] for one in row["rank"]] == [1] * 10
    assert [one["errors"] for one in row["rank"]] == [0.0] * 8 + [1.0] * 2
    assert [one["from"] for one in row["l1"]] == list(L1_EDGES)
    assert [one["queries"] for one in row["l1"]] == [0, 0, 0, 0, 10, 0, 0, 0]
    assert (row["queries"], row["errors"], row["dropped"]) == (10, 0.2, 0.1)
    assert (row["errors_of_dropped"], row["errors_of_kept"]) == (1.0, 1 / 9)
    assert (row["background_queries"], row["dropped_background"]) == (2, 0.0)
    said = table({"step": None, **row})
    assert "10 matched queries" in said and "percentile 90 of things" in said
    none = queries(kept=np.ones(10, bool))
    assert "    - % are errors" in table({"step": 3, **summary(none, TINY)})


def test_the_command_measures_the_detector_that_is_named(toy, tmp_path, capsys, monkeypatch):
    data, split, truth, params = toy
    run, out = tmp_path / "run", tmp_path / "out"
    write_run(run, data, "faster_rcnn,dino", retrain_dino=TINY)
    folder = RunFolder(run)
    save_detector(folder.weights("retrain_dino"), Dino(TINY, split.classes), params)
    write_json(folder.mark("retrain_dino"), {})
    write_json(folder.pseudo_boxes(), pseudo(truth, 0.5))
    flags = ["--run", str(run), "--out", str(out), "--detector", "dino"]
    assert entry_point(main, flags) == 0
    assert "matched queries" in capsys.readouterr().out
    (row,) = json.loads((out / "drop.json").read_text())["rows"]
    assert row["queries"] and row["errors"] > 0.5 and row["step"] is None
    assert row["detector"]["file"] == "retrain_dino/params.safetensors"
    assert row["detector"]["supervision"] == "unknown"
    assert (out / "drop.png").read_bytes()[:4] == b"\x89PNG"
    save_mil(folder.weights("wsod"), split.classes, params)
    trained = []
    monkeypatch.setattr(
        "experiments.paper.drop_figures.train",
        lambda run, pgt, config, **how: trained.append((config, how["until"])) or params,
    )
    assert entry_point(main, [*flags, "--at", "2"]) == 0
    assert trained == [(vary(TINY, loss={"drop": None}), 2)]
    (row,) = json.loads((out / "drop.json").read_text())["rows"]
    assert row["started_from"] == {
        "file": "wsod/params.safetensors", "supervision": "tags", "source": "a test"
    }  # fmt: skip
    for name, message in (("dinoo", "is not retrained by the run"), ("mil", "is not retrained")):
        assert entry_point(main, [*flags[:-1], name]) == 2
        assert f"--detector: {name} {message}" in capsys.readouterr().err


def test_other_weights_of_the_same_name_begin_a_training_anew(toy, tmp_path, monkeypatch):
    data, _, truth, params = toy
    init, trained = tmp_path / "start.safetensors", []
    config = vary(TINY, optim={"init": str(init)})
    opened = open_run(write_run(tmp_path / "run", data, "dino", retrain=config))
    options = DropFigures(opened.folder.root, tmp_path / "out")
    work = _Work(options, opened, pseudo(truth, 0.5), config=config, judge=Judge(truth))
    monkeypatch.setattr(
        "experiments.paper.drop_figures.train",
        lambda *given, **how: trained.append(how["until"]) or params,
    )
    for content, times in ((b"one", 1), (b"one", 1), (b"other", 2)):
        init.write_bytes(content)
        train_until(work, 2)
        assert len(trained) == times
    init.unlink()
    with pytest.raises(BadInput, match=r"start\.safetensors: does not exist"):
        train_until(work, 2)
    assert (options.out / "training" / "params_2.safetensors").exists()
