"""Tables of seeds: cells run once, honest verdicts, and both ablations on a tiny run."""

import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import tiny_pipeline
from configs import vary
from scipy import stats
from test_drop_figures import TINY, pseudo, save_mil, toy  # noqa: F401  (a fixture)

from experiments.paper import ablation, ablation_cells, ablation_rows
from experiments.paper.seed_tables import Table, markdown, open_runs, run_cells
from experiments.paper.verdicts import spread_verdict, verdict
from experiments.pipeline import detectors
from experiments.pipeline.config import mini
from experiments.pipeline.run import open_run
from experiments.pipeline.work_folder import MARK
from weaksam_jax.cli import entry_point
from weaksam_jax.detectors.dino import DinoConfig
from weaksam_jax.detectors.dino.loss_config import QueryDropConfig
from weaksam_jax.detectors.faster_rcnn.config import DropConfig, TestConfig
from weaksam_jax.detectors.faster_rcnn.recipes import voc07
from weaksam_jax.engine.checkpoint import CHECKPOINTS


@dataclass(frozen=True)
class Number:
    value: float


def cells(methods, seeds, out, work, *more, name="table"):
    return run_cells(Table(name, ("ap50",), methods, seeds, out), work, *more)


def test_cells_run_once_and_again_when_their_settings_change(tmp_path):
    calls = []

    def work(method, seed, folder):
        calls.append((method, seed))
        return {"ap50": 10.0 * seed}

    methods = {"a": Number(1), "b": Number(2)}
    rows = cells(methods, (0, 1), tmp_path, work)
    assert calls == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert cells(methods, (0, 1), tmp_path, work) == rows and len(calls) == 4
    cells(methods | {"b": Number(3)}, (0, 1, 2), tmp_path, work)
    assert calls[4:] == [("a", 2), ("b", 0), ("b", 1), ("b", 2)]
    assert "| a | 5.0 ± 7.1 | 0.0, 10.0 | 0.0 |" in markdown(rows, ("ap50",))
    again = cells({"c": Number(3)}, (1,), tmp_path, work, name="other")
    assert len(calls) == 8 and [row["method"] for row in again] == ["c"], "it is cell b of seed 1"
    assert (tmp_path / "other.json").exists()
    calls.clear()
    cells(methods, (1,), tmp_path, work, lambda seed: f"weights {seed}")
    cells(methods, (1,), tmp_path, work, lambda seed: f"weights {seed}")
    assert calls == [("a", 1), ("b", 1)], "other weights, other cells"


def test_a_stopped_cell_goes_on_but_never_from_other_settings(tmp_path):
    seen = []

    def stopped(method, seed, folder):
        seen.append(sorted(path.name for path in folder.iterdir()))
        (folder / "checkpoint").touch()
        raise KeyboardInterrupt

    for value in (1, 1, 2):
        with pytest.raises(KeyboardInterrupt):
            cells({"a": Number(value)}, (0,), tmp_path, stopped)
    assert seen == [[MARK], [MARK, "checkpoint"], [MARK]]


def test_a_seed_takes_its_run_and_the_first_again(toy, tmp_path):  # noqa: F811
    roots = [write_run(tmp_path / name, toy) for name in ("one", "two")]
    runs = open_runs(roots, (5, 6, 7), None)
    assert [runs.of(seed).folder.root for seed in (5, 6, 7)] == [roots[0], roots[1], roots[0]]
    assert open_runs(roots, None, None).seeds == (0, 1) and len(runs.images()) == 2


def test_a_verdict_needs_more_than_the_noise():
    assert "helps" in verdict("x", [12, 13, 14], [10, 11, 12.5])
    assert "harms" in verdict("x", [8, 9, 10], [10, 11, 12.5])
    assert "noise" in verdict("x", [12, 9, 14], [10, 11, 12.5])
    assert "one seed" in verdict("x", [12], [10])


def test_a_verdict_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    words = set()
    for _ in range(40):
        before = rng.normal(50, 2, 3)
        changed = before + rng.normal(1, 0.8, 3)
        told = verdict("x", changed, before)
        sure = stats.ttest_rel(changed, before).pvalue < 0.05
        assert sure == ("noise of seeds" not in told)
        words.add(sure)
    assert words == {True, False}


def test_the_best_of_several_is_tukeys_test():
    rng = np.random.default_rng(1)
    words = set()
    for shift in (0, 1, 2, 4, 6, 8):
        values = {str(i): rng.normal(50 + shift * i, 2, 3) for i in range(3)}
        order = sorted(values.values(), key=np.mean)
        p = stats.tukey_hsd(*order).pvalue[0, 2]
        told = spread_verdict("tau", values)
        assert f"p = {p:.2f}" in told and ("within" in told) == (p >= 0.05)
        words.add(p >= 0.05)
    assert words == {True, False}
    assert "one seed" in spread_verdict("tau", {"a": [1.0], "b": [2.0]})


def write_run(run, toy, **optim):  # noqa: F811
    """A run folder with a finished wsod stage and the tiny detector's settings."""
    data, split, truth, params = toy
    test = TestConfig(tta_scales=(((96, 96),),), tta_flip=False, batch_size=2, pre_nms=50)
    drop = DropConfig(tau_cls=0.1, tau_reg=1.0, start=1)
    tiny = vary(TINY, loss={"drop": drop}, optim=optim)
    tiny_pipeline.write_run(run, data, retrain=replace(tiny, test=test))
    save_mil(run / "wsod" / "params.safetensors", split.classes, params)
    found = [one | {"score": 0.5} for one in pseudo(truth, 0.0)["annotations"]]
    (run / "wsod" / "detections_train.json").write_text(json.dumps(found))
    return run


@pytest.mark.parametrize(
    ("table", "methods"),
    [
        ("5a", ["top-1", "adaptive", "adaptive + RoI drop"]),
        ("9", ["tau_reg 1, tau_cls 0.1", "tau_reg 1, tau_cls 3"]),
    ],
)
def test_both_tables_on_a_tiny_run(toy, tmp_path, capsys, table, methods):  # noqa: F811
    run, out = write_run(tmp_path / "run", toy), tmp_path / "out"
    flags = ["--table", table, "--runs", str(run), "--out", str(out)]
    flags += ["--seeds", "4", "--tau-reg", "1", "--tau-cls", "0.1", "3"]
    assert entry_point(ablation.main, flags) == 0
    rows = json.loads((out / f"table_{table}.json").read_text())["rows"]
    assert [(row["method"], row["seed"]) for row in rows] == [(name, 4) for name in methods]
    drops = [row["settings"]["retrain"]["loss"]["drop"] for row in rows]
    if table == "5a":
        assert drops[:2] == [None] * 2 and drops[2]["tau_cls"] == 0.1
    else:
        assert [(one["tau_reg"], one["tau_cls"]) for one in drops] == [(1.0, 0.1), (1.0, 3.0)]
    said = capsys.readouterr().out
    assert "one seed" in said and "tau_s 0.8" in said and "tau_cls 0.1, tau_reg 1 (paper" in said
    assert (out / f"table_{table}.png").read_bytes()[:4] == b"\x89PNG"
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    dropped = {line["stage"]: line.get("dropped_background") for line in log}
    cells = [f"{name.replace(' ', '_')}-4" for name in methods]
    assert set(dropped) == {*cells, "before_drop-4"} and dropped["before_drop-4"] is None
    seen = {"file": "wsod/params.safetensors", "supervision": "tags", "source": "a test"}
    assert [row["started_from"] for row in rows] == [seen] * len(rows)
    note = "start: wsod/params.safetensors, which had seen tags (a test)"
    assert note in said and note in (out / f"table_{table}.md").read_text().splitlines()
    last = dropped[cells[-1]] if table == "5a" else dropped[cells[0]]
    assert last > 0, "nothing was dropped at the loss of an untrained detector"
    assert all((out / cell / "detections_test.json").exists() for cell in cells)
    assert [path.parent.name for path in out.rglob("checkpoints")] == ["before_drop-4"]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("row.json")}
    assert entry_point(ablation.main, flags) == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("row.json")}


def test_cells_with_a_common_beginning_are_those_trained_alone(toy, tmp_path):  # noqa: F811
    """Also when a cell was stopped right after the copy, and when thresholds come later."""
    run, out = write_run(tmp_path / "run", toy, steps=3), tmp_path / "out"

    def rows(table, out, **values):
        options = ablation.Ablation(table, (run,), out, seeds=(4,), **values)
        ablation.ablate(options)
        return [path.parent for path in sorted(out.glob("*/row.json"))]

    made = rows("5a", out)
    rows("9", out, tau_reg=(1.0,), tau_cls=(0.1, 0.5))
    late = json.loads((out / "table_9.json").read_text())["rows"]
    alone = tmp_path / "alone"
    for values in ({"tau_cls": (0.1,), "tau_reg": ()}, {"tau_cls": (0.5,), "tau_reg": ()}):
        shutil.rmtree(alone, ignore_errors=True)
        (cell,) = rows("9", alone, **values)  # a method with no other has nothing in common
        assert not (alone / "before_drop-4").exists()
        want = json.loads((cell / "detections_test.json").read_text())
        folder = "adaptive_+_RoI_drop-4" if values["tau_cls"] == (0.1,) else f"{cell.name}"
        got = json.loads((out / folder / "detections_test.json").read_text())
        assert len(got) == len(want) > 0
        for one, other in zip(got, want, strict=True):
            np.testing.assert_allclose(one["bbox"], other["bbox"], atol=1e-3)
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    assert len(made) == 3 and [row["method"] for row in late] == [
        "tau_reg 1, tau_cls 0.1",
        "tau_reg 1, tau_cls 0.5",
    ]
    steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    (line,) = [one for one in steps if one["stage"] == "adaptive_+_RoI_drop-4"]
    assert len(line["every_step"]["dropped_foreground"]) == 2, "the steps after the common one"


def test_runs_that_cannot_be_compared_are_refused(toy, tmp_path, capsys):  # noqa: F811
    one, other = write_run(tmp_path / "one", toy), write_run(tmp_path / "two", toy, steps=3)
    never = write_run(tmp_path / "never", toy, steps=1, warmup=0)

    def said(*runs):
        flags = ["--table", "5a", "--out", str(tmp_path / "out"), "--runs", *map(str, runs)]
        assert entry_point(ablation.main, flags) == 2
        return capsys.readouterr().err

    assert f"{other}: has other settings" in said(one, other)
    assert "begins at step 1 of 1: never" in said(never)
    (one / "wsod" / "detections_train.json").unlink()
    assert "detections_train.json: does not exist" in said(one)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "0", "1", "0"], "--seeds: names a seed twice"),
        (["--seeds"], "--seeds: is empty"),
        (["--schedule", "0"], "--schedule: is 0"),
        (["--schedule", "nan"], "--schedule: is nan"),
    ],
)
def test_tables_that_would_say_nothing_are_refused(tmp_path, capsys, flags, message):
    more = ["--table", "5a", "--runs", str(tmp_path), "--out", str(tmp_path / "out"), *flags]
    assert entry_point(ablation.main, more) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_further_rules_have_their_own_thresholds_and_are_held_against_adaptive():
    rows = ablation_rows.table_5(mini(), ("best_kept", "pgf"))
    assert list(rows)[3:] == ["rule best_kept", "rule pgf"]
    assert [rows[name].pgt.score_threshold for name in list(rows)[1:]] == [0.8, 0.8, 0.3, 0.2]
    assert rows["rule pgf"].retrain.loss.drop is None and "bottle" in rows["rule pgf"].pgt.nested
    said = ablation_rows.verdicts_5({name: [float(i)] for i, name in enumerate(rows)})
    heads = [line.split(":")[0] for line in said]
    assert heads[2:] == ["rule best_kept after adaptive", "rule pgf after adaptive"]
    assert "+2.0" in said[2] and "+3.0" in said[3]


def test_tables_of_query_drop():
    config = mini("mist", "dino")
    rows = ablation_rows.table_5(config)
    assert list(rows) == ["top-1", "adaptive", "adaptive + query drop"]
    drops = [one.retrain.loss.drop for one in rows.values()]
    assert drops == [None, None, config.retrain.loss.drop]
    drops = {name: one.retrain.loss.drop for name, one in ablation_rows.table_10(config).items()}
    assert drops["no drop"] is None and not drops["things"].background
    assert drops["things + background"] == replace(drops["things"], background=True)
    rows = ablation_rows.table_11(config, (100.0, 80.0))
    found = {name: one.retrain.loss.drop.percentile for name, one in rows.items()}
    assert found == {"percentile 100": 100, "percentile 80": 80}
    said = ablation_rows.verdicts_in_turn({"a": [1.0, 2.0], "b": [3.0, 5.0], "c": [1.0, 1.0]})
    assert [line.split(":")[0] for line in said] == ["b after a", "c after b"]
    (_, note) = ablation_rows.setting_notes(config)
    assert note.startswith("query drop: percentile 90 (paper: 90) of things, encoder, global, from")


def test_tables_say_what_their_rows_started_from():
    row = {"file": "x.safetensors", "supervision": "tags, boxes", "source": "a\x1b"}
    rows = [{"started_from": one} for one in (row, row, row | {"allowed": "boxes"}, None, 3)]
    start = "start: x.safetensors, which had seen tags, boxes (a\\x1b)"
    assert ablation_rows.supervision_notes([*rows, {}]) == [
        start,
        f"{start}; allowed: boxes",
        "start: fresh weights",
        "start: not recorded",
    ]


def test_dinos_settings_are_the_runs_or_its_presets(tmp_path):
    own = vary(mini("mist", "dino").retrain, optim={"steps": 7})
    both = tiny_pipeline.write_run(tmp_path / "a", "mini", "faster_rcnn,dino", retrain_dino=own)
    none = tiny_pipeline.write_run(tmp_path / "b", "mini", "faster_rcnn")
    assert ablation_rows.of_kind(open_run(both), "dino").retrain == own
    assert ablation_rows.of_kind(open_run(both), "faster_rcnn").retrain == mini().retrain
    preset = mini("mist", "dino").retrain
    assert ablation_rows.of_kind(open_run(none), "dino").retrain == preset


@pytest.mark.parametrize(("table", "rows"), [("5b", 3), ("10", 3), ("11", 2)])
def test_dinos_tables_retrain_dino(toy, tmp_path, capsys, monkeypatch, table, rows):  # noqa: F811
    """Of a run that retrains Faster R-CNN alone; the training itself is replaced."""
    data, split, truth, params = toy
    run, out, trained = tmp_path / "run", tmp_path / "out", []
    tiny_pipeline.write_run(run, data)
    save_mil(run / "wsod" / "params.safetensors", split.classes, params)
    found = [one | {"score": 0.9} for one in pseudo(truth, 0.0)["annotations"]]
    (run / "wsod" / "detections_train.json").write_text(json.dumps(found))

    def train(run, pgt, config, *, folder, seed, until=None):
        (folder / CHECKPOINTS).mkdir(exist_ok=True)
        if until is not None:  # what the rows have in common
            return {}
        assert detectors.retrain_start(run.folder, config).path == run.folder.weights("wsod")
        trained.append(config)
        return {}

    monkeypatch.setattr(ablation_cells, "train", train)
    monkeypatch.setattr(ablation_cells, "detect_retrained", lambda run, detector, params: [])
    flags = ["--table", table, "--runs", str(run), "--out", str(out), "--seeds", "3"]
    assert entry_point(ablation.main, [*flags, "--percentile", "90", "50"]) == 0
    assert {type(one) for one in trained} == {DinoConfig} and len(trained) == rows
    assert "percentile 90 (paper: 90)" in capsys.readouterr().out
    made = json.loads((out / f"table_{table}.json").read_text())["rows"]
    drops = [row["settings"]["retrain"]["loss"]["drop"] for row in made]
    percentiles = {"5b": [None, None, 90], "10": [None, 90, 90], "11": [90, 50]}[table]
    assert [drop and drop["percentile"] for drop in drops] == percentiles


def test_a_shortened_schedule_keeps_its_shape():
    full = voc07()
    half = detectors.shortened(full, 0.5)
    assert half.optim.steps * 2 == full.optim.steps
    assert half.loss.drop.start * 2 == full.loss.drop.start
    assert [2 * one for one in half.optim.milestones] == list(full.optim.milestones)
    assert detectors.shortened(full, 1.0) == full
    assert detectors.shortened(vary(full, loss={"drop": None}), 0.1).loss.drop is None
    dino = mini("mist", "dino").retrain
    assert detectors.shortened(dino, 0.5).loss.drop.start * 2 == dino.loss.drop.start
    at_once = vary(dino, loss={"drop": QueryDropConfig()})
    assert detectors.shortened(at_once, 0.5).loss.drop.start == 0
