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
