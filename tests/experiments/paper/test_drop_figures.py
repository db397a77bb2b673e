"""Statistics of RoI losses: hand-made intervals, and a detector whose pseudo boxes we know."""

import json

import jax
import numpy as np
import pytest
from tiny_pipeline import write_run

from experiments.paper.drop_figures import main, table
from experiments.paper.roi_losses import (
    EDGES,
    Judge,
    Rois,
    intervals,
    sample,
    summary,
    unaugmented,
)
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags, open_truth
from weaksam_jax.data.mini_set import write_mini
from weaksam_jax.detectors import metadata_of, save_detector
from weaksam_jax.detectors.faster_rcnn import FasterRcnn
from weaksam_jax.detectors.faster_rcnn.config import (
    DataConfig,
    DropConfig,
    FasterRcnnConfig,
    LossConfig,
    ModelConfig,
)
from weaksam_jax.detectors.mil import MilDetector
from weaksam_jax.detectors.mil.config import MilConfig
from weaksam_jax.engine.optimizer import OptimConfig
from weaksam_jax.engine.weights import save_params
from weaksam_jax.settings import change
from weaksam_jax.supervision import saw

TINY = FasterRcnnConfig(
    model=ModelConfig(channels=8, fc_width=8),
    loss=LossConfig(
        rpn_batch=16,
        pre_nms=20,
        post_nms=20,
        roi_batch=16,
        drop=DropConfig(tau_cls=4.0, tau_reg=1.0),
    ),
    optim=OptimConfig(batch_size=2, steps=2, warmup=1),
    data=DataConfig(scales=(((96, 96),),)),
)


def test_intervals_and_thresholds_by_hand():
    cls = np.array([0.1, 0.3, 5.0, 9.0], np.float32)
    reg = np.array([0.2, 1.0, 0.1, 0.1], np.float32)
    wrong = np.array([False, True, True, False])
    rows = intervals(cls, wrong)
    assert [row["from"] for row in rows] == list(EDGES)
    assert [(row["rois"], row["errors"]) for row in rows if row["rois"]] == [
        (1, 0.0), (1, 1.0), (1, 1.0), (1, 0.0)
    ]  # fmt: skip
    assert rows[2]["errors"] is None and rows[-1]["rois"] == 1
    found = summary(Rois(cls, reg, wrong, np.array([1.0, 5.0], np.float32)), TINY)
    assert found["dropped"] == 0.5 and found["errors"] == 0.5  # a loss of exactly tau is kept
    assert found["errors_of_dropped"] == 0.5 and found["errors_of_kept"] == 0.5
    assert (found["background_rois"], found["dropped_background"]) == (2, 0.5)


def test_the_runs_rule_decides_what_is_dropped():
    cls, reg = np.float32([5, 5, 1, 1]), np.float32([2, 0, 2, 0])
    wrong = np.array([True, False, False, False])
    rois = Rois(cls, reg, wrong, np.float32([9]))
    both = summary(rois, change(TINY, {"loss.drop.rule": "both"}))
    assert both["dropped"] == 0.25 and both["errors_of_dropped"] == 1
    assert both["dropped_background"] == 0  # both losses of a background RoI are never high
    spared = summary(rois, change(TINY, {"loss.drop.background": False}))
    assert spared["dropped"] == 0.75 and spared["dropped_background"] == 0


def test_nothing_to_share_is_none_and_still_json():
    empty = np.zeros(0, np.float32)
    found = summary(Rois(empty, empty, empty.astype(bool), empty), TINY)
    assert found["dropped"] is found["dropped_background"] is found["errors"] is None
    json.dumps(found, allow_nan=False)
    assert " - " in table({"step": None, **found})


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """(folder of the data set, tags, truth, parameters of an untrained detector)."""
    data = write_mini(tmp_path_factory.mktemp("drop"), 0, 6, 2, progress=False)
    split, truth = open_tags(data, "trainval"), open_truth(data, "trainval")
    samples = unaugmented(pseudo(truth, 0.0), split, TINY)
    params = FasterRcnn(TINY, split.classes).init(jax.random.key(0), samples.example())
    return data, split, truth, jax.device_get(params)


def sampled(toy, boxes, same_class=False):
    """The RoIs of the untrained detector, trained on these boxes."""
    _, split, truth, params = toy
    samples, judge = unaugmented(boxes, split, TINY), Judge(truth, same_class)
    return sample(FasterRcnn(TINY, split.classes), params, samples, judge=judge)


def save_mil(path, classes, params):
    """A MIL detector's file, as far as retraining reads it."""
    backbone = {"backbone": params["backbone"]["stem"]}
    seen = saw(["tags"], "a test").metadata()
    save_params(path, backbone, metadata_of(MilDetector(MilConfig(), classes)) | seen)


def pseudo(truth, shift):
    """Every true box, moved by a share of its width."""
    boxes = [
        {"image_id": r.image_id, "category_id": int(label) + 1,
         "bbox": [float(x1 + shift * (x2 - x1)), float(y1), float(x2 - x1), float(y2 - y1)]}
        for r in truth.records
        for label, (x1, y1, x2, y2) in zip(r.labels, r.boxes, strict=True)
    ]  # fmt: skip
    return {"annotations": boxes}


@pytest.mark.parametrize(("shift", "share"), [(0.0, 0.0), (0.4, 1.0)])
def test_true_boxes_are_no_errors_and_moved_ones_are(toy, shift, share):
    truth = toy[2]
    rois = sampled(toy, pseudo(truth, shift))
    assert len(rois.cls) >= sum(len(record.boxes) > 0 for record in truth.records)
    # 0.4 of the width leaves an IoU of 0.43, unless the image cuts the box or objects lie close.
    assert abs(rois.wrong.mean() - share) < 0.15
    assert (rois.cls > 0).all() and (rois.reg >= 0).all() and len(rois.cls_background)


def test_a_box_on_an_object_of_another_class_is_right_unless_classes_are_asked_for(toy):
    _, split, truth, _ = toy
    boxes = pseudo(truth, 0.0)
    for one in boxes["annotations"]:
        one["category_id"] = one["category_id"] % len(split.classes) + 1
    assert not sampled(toy, boxes).wrong.any()
    assert sampled(toy, boxes, same_class=True).wrong.mean() > 0.9


def test_the_command_trains_measures_and_draws(toy, tmp_path, capsys):
    data, split, truth, params = toy
    run = write_run(tmp_path / "run", data, retrain=TINY)
    detector = FasterRcnn(TINY, split.classes)
    save_detector(run / "retrain" / "params.safetensors", detector, params)
    save_mil(run / "wsod" / "params.safetensors", split.classes, params)
    (run / "pgt").mkdir()
    (run / "pgt" / "pgt.json").write_text(json.dumps(pseudo(truth, 0.0)))
    flags = ["--run", str(run), "--out", str(tmp_path / "out")]
    assert entry_point(main, flags) == 0
    assert "the run's detector" in capsys.readouterr().out
    assert entry_point(main, [*flags, "--at", "1", "2"]) == 0
    rows = json.loads((tmp_path / "out" / "drop.json").read_text())["rows"]
    assert [row["step"] for row in rows] == [1, 2] and all(row["rois"] for row in rows)
    weights = [tmp_path / "out" / "training" / f"params_{step}.safetensors" for step in (1, 2)]
    one, two = (path.read_bytes() for path in weights)
    assert one != two
    log = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == 2 and "dropped_foreground" not in json.loads(log[-1])
    assert (tmp_path / "out" / "drop_2.png").read_bytes()[:4] == b"\x89PNG"
    # A step is measured at that step, also when the training has gone past it since.
    weights[0].unlink()
    assert entry_point(main, [*flags, "--at", "1"]) == 0
    again = json.loads((tmp_path / "out" / "drop.json").read_text())["rows"]
    assert again == rows[:1] and weights[0].read_bytes() == one
    # Another seed is another training, in the same folder.
    assert entry_point(main, [*flags, "--at", "1", "--seed", "7"]) == 0
    assert weights[0].read_bytes() != one and not weights[1].exists()
    capsys.readouterr()
    for step in ("3", "0"):
        assert entry_point(main, [*flags, "--at", step]) == 2
        assert "--at" in capsys.readouterr().err
