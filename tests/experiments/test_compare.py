"""Several runs in one table."""

import json

import pytest

from experiments import compare
from weaksam_jax.cli import entry_point


def run(folder, **metrics):
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return str(folder)


def test_means_and_missing_figures(tmp_path, capsys):
    a = run(tmp_path / "a", wsod={"ap50": 50.0}, pgt={"recall50": 0.25}, seconds={"data": 60})
    b = run(tmp_path / "b", wsod={"ap50": 53.0}, seconds={"data": 90, "clues": 30})
    assert entry_point(compare.main, [a, b]) == 0
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
    ]
    assert rows[0] == ["figure", "a", "b", "mean ± deviation"]
    assert rows[2] == ["AP50 of the MIL detector", "50.0", "53.0", "51.5 ± 2.1"]
    assert rows[3] == ["Adaptive pseudo boxes: recall", "25.0", "–", "25.0"]
    assert rows[4] == ["Minutes of all stages", "1.0", "2.0", "1.5 ± 0.7"]


def test_what_detectors_started_from_is_told(tmp_path, capsys):
    def ledger(**rows):
        return {"wsod": {"ap50": 50.0}, "seconds": {}, "supervision": rows}

    sam, tags = {"supervision": "masks"}, {"supervision": "tags", "file": "x", "source": "y"}
    runs = {
        "a": ledger(sam=sam, retrain_start=tags),
        "b": ledger(retrain_start=tags, retrain_dino_start={"supervision": "boxes, tags"}),
        "c": ledger(wsod_start={"supervision": "boxes", "allowed": "boxes"}, clues=sam),
        "d": ledger(sam=sam, retrain_start={"supervision": "| \x1b[31m"}, wsod_start=3),
        "n": ledger(sam=sam, clues_start=sam),
        "e": {"wsod": {"ap50": 50.0}, "seconds": {}},
    }
    folders = [run(tmp_path / name, **metrics) for name, metrics in runs.items()]
    assert entry_point(compare.main, folders) == 0
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")[1:-1]]
    assert cells == [
        "Detectors' starts had seen",
        "tags",
        "tags, boxes",
        "boxes (allowed: boxes)",
        "unknown",
        "nothing",
        "–",
        "",
    ]


def test_no_run_and_no_metrics_end_in_one_line(tmp_path, capsys):
    assert entry_point(compare.main, [str(tmp_path)]) == 2
    assert "metrics.json" in capsys.readouterr().err
    assert entry_point(compare.main, []) == 2
    assert "no run was given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metrics", "fault"),
    [
        ([], "is no JSON object"),
        ("text", "is no JSON object"),
        ({"seconds": [1, 2]}, "seconds is no finite number"),
        ({"seconds": {"data": "long"}}, "seconds.data is no finite number ('long')"),
        ({"seconds": {"data": {"a": None}}}, "seconds.data.a is no finite number (null)"),
        ({"wsod": {"ap50": "\x1b[31m"}}, "wsod.ap50 is no finite number"),
        ({"wsod": {"ap50": [50.0, 51.0]}}, "wsod.ap50 is no finite number"),
        ({"wsod": {"ap50": True}}, "wsod.ap50 is no finite number (true)"),
        ({"wsod": {"ap50": 1e300}}, "wsod.ap50 is no finite number (1e+300)"),
        ({"wsod": {"ap50": 10**400}}, "wsod.ap50 is no finite number"),
        ({"wsod": [1]}, "wsod is no finite number ([1])"),
        ({"wsod": 50.0, "pgt": "x"}, "pgt is no finite number ('x')"),
        ({"wsod": [{"ap50": 50.0}]}, "wsod is no finite number"),
        ({"wsod": {"ap50": {}}}, "wsod.ap50 is no finite number ({})"),
        ({"wsod": {"ap50": {"cat": 50.0}}}, "wsod.ap50.cat is no place for a figure"),
        ({"wsod": {"ap50": [[50.0]]}}, "wsod.ap50 is no finite number"),
        ({"wsod": {"ap50": None}}, "wsod.ap50 is no finite number (null)"),
        ({"proposals": {"recall": 0.5}}, "proposals.recall is no place for a figure (0.5)"),
        ({"proposals": {"recall": {"0.50": [0.5]}}}, "proposals.recall.0.50 is no finite number"),
        ({"wsod": 50.0}, "wsod is no place for a figure (50.0)"),
        ({"seconds": {"data": {"a": 1.0}}}, "seconds.data.a is no place for a figure"),
        ({"seconds": {"data": -1e101}}, "seconds.data is no finite number"),
    ],
)
def test_metrics_of_another_kind_are_refused_by_name(tmp_path, capsys, metrics, fault):
    good = run(tmp_path / "a", wsod={"ap50": 50.0}, seconds={"data": 60})
    run(tmp_path / "b")
    path = tmp_path / "b" / "metrics.json"
    path.write_text(json.dumps(metrics))
    assert entry_point(compare.main, [good, str(tmp_path / "b")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ") and fault in line and "\x1b" not in line


def test_what_is_no_figure_of_the_table_may_be_anything(tmp_path, capsys):
    odd = {"wsod": {"ap50": 50.0, "note": [[1]], "per_class": {"cat": None}}, "mine": [{"a": 1}]}
    path = run(tmp_path / "a", pgt={}, seconds={}, dataset={}, **odd)
    assert entry_point(compare.main, [path]) == 0
    assert "| AP50 of the MIL detector | 50.0 | 50.0 |" in capsys.readouterr().out
