"""Tables of seeds: cells run once, honest verdicts, and both ablations on a tiny run."""

import json
from dataclasses import dataclass, replace

import pytest
from test_drop_figures import TINY, pseudo, world  # noqa: F401  (a fixture)

from experiments import ablation
from experiments.seed_tables import markdown, run_cells, verdict
from experiments.settings import mini
from experiments.stages import jsonable
from weaksam_jax.cli import entry_point
from weaksam_jax.engine.checkpoint import save_params


@dataclass(frozen=True)
class Number:
    value: float


def test_cells_run_once_and_again_when_their_settings_change(tmp_path):
    calls = []

    def work(method, seed, folder):
        calls.append((method, seed))
        return {"ap50": 10.0 * seed}

    methods = {"a": Number(1), "b": Number(2)}
    rows = run_cells(methods, (0, 1), tmp_path, work, ("ap50",))
    assert calls == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert run_cells(methods, (0, 1), tmp_path, work, ("ap50",)) == rows and len(calls) == 4
    run_cells(methods | {"b": Number(3)}, (0, 1, 2), tmp_path, work, ("ap50",))
    assert calls[4:] == [("a", 2), ("b", 0), ("b", 1), ("b", 2)]
    assert "| a | 5.0 ± 7.1 | 0.0, 10.0 |" in markdown(rows, ("ap50",))


def test_a_verdict_needs_more_than_the_noise():
    assert "helps" in verdict("x", [12, 13, 14], [10, 11, 12.5])
    assert "harms" in verdict("x", [8, 9, 10], [10, 11, 12.5])
    assert "noise" in verdict("x", [12, 9, 14], [10, 11, 12.5])
    assert "one seed" in verdict("x", [12], [10])


@pytest.mark.parametrize(
    ("table", "methods"),
    [("5a", ["top-1", "adaptive", "adaptive + RoI drop"]), ("9", ["tau_cls 3"])],
)
def test_both_tables_on_a_tiny_run(world, tmp_path, capsys, table, methods):  # noqa: F811
    data, _, truth, params = world
    run, settings = tmp_path / "run", jsonable(mini())
    tiny = replace(TINY, views=(((96, 96),),), mirrored=False, test_batch=2, test_pre_nms=50)
    settings["retrain"] = jsonable(tiny)
    save_params(run / "wsod" / "params.safetensors", {"backbone": params["backbone"]["stem"]})
    found = [one | {"score": 0.5} for one in pseudo(truth, 0.0)["annotations"]]
    (run / "wsod" / "detections_train.json").write_text(json.dumps(found))
    (run / "settings.json").write_text(json.dumps({"settings": settings, "data": str(data)}))
    flags = ["--table", table, "--runs", str(run), "--out", str(tmp_path / "out")]
    flags += ["--seeds", "4", "--tau-reg", "--tau-cls", "3"]
    assert entry_point(ablation.main, flags) == 0
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert [(row["method"], row["seed"]) for row in rows] == [(name, 4) for name in methods]
    drops = [row["settings"]["retrain"]["drop"] for row in rows]
    if table == "5a":
        assert drops[:2] == [None] * 2 and drops[2]["tau_cls"] == 4.0
        assert "one seed" in capsys.readouterr().out
    else:
        assert (drops[0]["tau_reg"], drops[0]["tau_cls"]) == (1.0, 3.0)
    assert (tmp_path / "out" / "table.png").read_bytes()[:4] == b"\x89PNG"
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    stages = {f"{name.replace(' ', '_')}-4" for name in methods}
    assert {line["stage"] for line in log} == stages
