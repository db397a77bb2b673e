"""The supervision ledger of a run, and weights that a weakly supervised run may not start from."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import run_folder
from configs import vary
from tiny_pipeline import flags, options

from experiments import custom
from experiments.pipeline import graph, ledger
from experiments.pipeline.config import mini
from experiments.pipeline.detectors import wsod_start
from experiments.pipeline.run import new_run
from experiments.pipeline.runner import Runner, Stage
from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags
from weaksam_jax.data.store import write_manifest
from weaksam_jax.detectors import RETRAINERS, read_weights, save_detector
from weaksam_jax.detectors.mil import MilDetector
from weaksam_jax.errors import BadInput, BadSetting
from weaksam_jax.files import read_metadata, write_arrays, write_json
from weaksam_jax.report.page import write_report
from weaksam_jax.run_folder import RunFolder
from weaksam_jax.supervision import saw, stated


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_data):
    """Files of a tiny run's MIL detector that have seen this and that; "unknown" says nothing."""
    folder = tmp_path_factory.mktemp("weights")
    config = options(*flags(tiny_data, folder / "run")).settings.wsod
    detector = MilDetector(config, open_tags(tiny_data, "trainval").classes)
    params = jax.tree.map(lambda one: np.zeros(one.shape, one.dtype), detector.shapes())
    for kind in ("tags", "boxes", "masks"):
        save_detector(folder / f"{kind}.safetensors", detector, params, saw([kind], f"x {kind}"))
    save_detector(folder / "unknown.safetensors", detector, params)
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize("stage", ["wsod", "retrain", "retrain-dino"])
@pytest.mark.parametrize("kind", ["boxes", "masks", "unknown"])
def test_a_run_is_refused_before_anything_is_written(
    tiny_data, weights, tmp_path, capsys, stage, kind
):
    out = tmp_path / "run"
    given = ("--retrain", "faster_rcnn,dino", f"--{stage}.optim.init", str(weights[kind]))
    command = flags(tiny_data, out, *given)
    assert entry_point(custom.main, command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {weights[kind]}: ")
    assert f"stage {stage.replace('-', '_')} would start from it" in line
    assert f"--allow-supervision {kind}" in line and not out.exists()
    other = "boxes" if kind != "boxes" else "masks"
    assert entry_point(custom.main, [*command, "--allow-supervision", other]) == 2
    assert not out.exists()


def started(tiny_data, path, *more):
    given = ("--wsod.optim.init", str(path), *more)
    return new_run(options(*flags(tiny_data, tiny_data.parent / "none", *given)))


def test_permission_lets_it_go_on_and_is_written_down(tiny_data, weights):
    run = started(tiny_data, weights["boxes"], "--allow-supervision", "boxes", "unknown")
    graph.check_starts(run, ["wsod"])
    start = read_weights(weights["boxes"])
    rows = ledger.start(run, "wsod", start)["supervision"]
    expected = {"file": weights["boxes"].as_posix(), "supervision": "boxes", "source": "x boxes"}
    assert rows == {"wsod_start": expected | {"allowed": "boxes"}}
    after = ledger.of_training(run, start)
    assert after.kinds == ("tags", "boxes") and after.source.endswith("from: x boxes")


def test_weights_that_saw_tags_need_none(tiny_data, weights):
    run = started(tiny_data, weights["tags"])
    graph.check_starts(run, ["wsod"])
    rows = ledger.start(run, "wsod", read_weights(weights["tags"]))["supervision"]
    assert "allowed" not in rows["wsod_start"] and ledger.start(run, "wsod", None) == {}
    assert ledger.of_training(run, None) == saw(["tags"], "tags of VOC2007 trainval")


def test_every_way_to_a_start_asks(weights):
    """Not the check at the beginning alone: whoever trains calls these."""
    folder, config = RunFolder(weights["boxes"].parent), mini().wsod
    config = vary(config, optim={"init": str(weights["boxes"])})
    with pytest.raises(BadInput, match="has seen boxes, and the MIL detector would start"):
        wsod_start(folder, config)
    assert wsod_start(folder, config, ("boxes",)).path == weights["boxes"]


def test_retraining_alone_looks_at_the_mil_detector(tiny_data, weights, tmp_path, capsys):
    out = tmp_path / "run"
    (out / "wsod").mkdir(parents=True)
    (out / "wsod" / "params.safetensors").write_bytes(weights["boxes"].read_bytes())
    assert entry_point(custom.main, flags(tiny_data, out, "--stages", "retrain")) == 2
    assert "params.safetensors: has seen boxes" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["wsod"]


def test_permission_is_no_setting(tmp_path):
    asked = options("--data", "d", "--allow-supervision", "boxes", "masks")
    assert asked.allow_supervision == ("boxes", "masks")
    from experiments.pipeline.options import settings_json

    assert "allow_supervision" not in settings_json(asked)
    write_json(tmp_path / "c.json", {"allow_supervision": ["boxes"]})
    with pytest.raises(BadSetting, match="allow_supervision is no setting but a permission"):
        options("--data", "d", "--config", str(tmp_path / "c.json"))
    with pytest.raises(BadInput, match="the command line"):
        options("--data", "d", "--allow-supervision", "tags")


def test_stages_add_their_rows(tmp_path):
    def stage(name, rows, **more):
        return Stage(name, 1, (), lambda: {"supervision": rows, **more})

    made = [stage("a", {"sam": {"file": "x"}}), stage("b", {"wsod_start": {"file": "y"}}, n=1)]
    metrics = Runner(RunFolder(tmp_path), 0).run(made)
    assert metrics["supervision"] == {"sam": {"file": "x"}, "wsod_start": {"file": "y"}}
    assert metrics["n"] == 1
    assert json.loads((tmp_path / "metrics.json").read_text())["supervision"].keys() == {
        "sam",
        "wsod_start",
    }
    plain = Runner(RunFolder(tmp_path / "other"), 0).run([Stage("a", 1, (), dict)])
    assert "supervision" not in plain


def test_clues_and_sam_are_named(tiny_data, tmp_path):
    head = {"weight": np.ones((7, 3), np.float32), "bias": np.ones(7, np.float32)}
    write_arrays(tmp_path / "head.safetensors", head, saw(["tags"], "mine").metadata())
    given = ("--clues", str(tmp_path / "head.safetensors"))
    run = new_run(options(*flags(tiny_data, tmp_path / "run", *given)))
    (row,) = ledger.clues(run)["supervision"].values()
    assert row == {"file": given[1], "supervision": "tags", "source": "mine"}
    (row,) = ledger.proposals(run, "sam")["supervision"].values()
    assert row["file"] == "sam_mini" and row["supervision"] == "masks"
    assert ledger.proposals(run, "selective_search") == {}


@pytest.mark.parametrize("said", [None, "x", {"sam": {"file": 1}}, {"sam": [], "other": {}}])
def test_a_store_that_does_not_say_is_unknown(tiny_data, tmp_path, said):
    run = of_store(tiny_data, tmp_path, said)
    rows = ledger.proposals(run, "sam")["supervision"]
    assert rows.keys() == {"proposals"} and rows["proposals"]["supervision"] == "unknown"


def test_a_store_says_what_its_networks_have_seen(tiny_data, tmp_path):
    row = {"file": "clip.pt", "supervision": "text", "source": "CLIP"}
    run = of_store(tiny_data, tmp_path, {"clues": row, "sam": row | {"more": 1}})
    assert ledger.proposals(run, "sam")["supervision"] == {"clues": row, "sam": row}


def of_store(tiny_data, tmp_path, said):
    more = {} if said is None else {"supervision": said}
    for split in ("trainval", "test"):
        write_manifest(tmp_path / "store", split, [], more)
    given = ("--proposals", str(tmp_path / "store"))
    return new_run(options(*flags(tiny_data, tmp_path / "run", *given)))


def test_the_report_shows_the_ledger_and_warns(tmp_path):
    train, test, *truths = run_folder.splits(tmp_path)
    files = run_folder.files(run_folder.fill(tmp_path / "run", train, test))
    metrics = run_folder.metrics()
    row = {"file": "coco <i>.safetensors", "supervision": "boxes", "source": "COCO"}
    metrics["supervision"] = {"sam": row, "retrain_dino_start": row | {"allowed": "boxes"}}
    write_json(files.metrics, metrics)
    splits, both = {"train": train, "test": test}, dict(zip(("train", "test"), truths, strict=True))
    page = write_report(files, splits, both).read_text()
    assert "Supervision ledger" in page and "coco &lt;i&gt;.safetensors" in page
    (warning,) = [one for one in page.split("<div") if one.startswith(' class="warning"')]
    assert "Not weakly supervised: the start of the retrained detector (DINO)" in warning
    metrics["supervision"]["retrain_dino_start"] = row
    write_json(files.metrics, metrics)
    assert 'class="warning"' not in write_report(files, splits, both).read_text()


def test_the_report_shows_every_retrained_detector(tmp_path):
    train, test, *truths = run_folder.splits(tmp_path)
    run = run_folder.fill(tmp_path / "run", train, test)
    path = run / "retrain_dino" / "detections_test.json"
    files = replace(run_folder.files(run), further={"retrain_dino": path})
    splits, both = {"train": train, "test": test}, dict(zip(("train", "test"), truths, strict=True))
    missing = write_report(files, splits, both).read_text()
    assert "detections of the retrained detector (DINO) (retrain_dino/detections_test" in missing
    write_json(path, run_folder.results(test))
    metrics = run_folder.metrics()
    metrics["retrain_dino"] = metrics["retrain"] | {"ap50": 51.5}
    write_json(files.metrics, metrics)
    page = write_report(files, splits, both).read_text()
    assert "AP50 of the retrained DINO" in page and "51.5 %" in page
    assert "retrained detector (DINO): " in page and "AP50 DINO" in page


def test_saved_detectors_say_it(weights):
    assert stated(read_metadata(weights["unknown"]), "w").kinds == ("unknown",)
    assert set(RETRAINERS) == {"faster_rcnn", "dino"}
