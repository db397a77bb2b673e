"""The page of a run whose files hold anything: the good figures, or one line."""

import json

import pytest
import run_folder

from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_json
from weaksam_jax.report import page
from weaksam_jax.report.artefacts import read_log

DEEP = 900 * "[" + 900 * "]"
WRONG = ["null", "true", "-1", "1.5", "1e999", str(10**400), '"x"', "[]", "[{}]", "{}"]
WRONG += ['{"a": {"b": 1}}', '["<script>"]', DEEP]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    splits = run_folder.splits(folder)
    return run_folder.fill(folder / "run", *splits[:2]), splits


def write(made):
    run, (train, test, train_truth, test_truth) = made
    splits, truths = {"train": train, "test": test}, {"train": train_truth, "test": test_truth}
    return page.write_report(run_folder.files(run), splits, truths).read_text(encoding="utf-8")


def places(value, here=()):
    """Names from the root of every entry of nested objects."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield (*here, name)
        yield from places(inner, (*here, name))


def planted(value, place, text):
    content = json.loads(json.dumps(value))
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = "planted here"
    return json.dumps(content).replace('"planted here"', text)


@pytest.fixture
def light(monkeypatch):
    """Without pictures, which are not what is asked here."""
    for name in ("_train_rows", "_test_rows", "_worst_train", "_worst_test"):
        monkeypatch.setattr(page, name, lambda *given: [])
    monkeypatch.setattr(page.curves, "_svg", lambda figure: "<svg></svg>")


def test_metrics_of_any_kind_are_left_out(made, light):
    run, _ = made
    path = run / "metrics.json"
    whole = read_json(path)
    try:
        for index, place in enumerate(places(whole)):
            path.write_text(planted(whole, place, WRONG[index % len(WRONG)]))
            assert "<script>" not in write(made)
        for text in WRONG:
            path.write_text(text)
            if text[0] != "{":
                with pytest.raises(BadInput, match=r"metrics\.json: "):
                    write(made)
    finally:
        path.write_text(json.dumps(whole))


def test_settings_of_any_kind(made, light):
    path = made[0] / "settings.json"
    whole = path.read_bytes()
    try:
        for text in WRONG:
            path.write_text(text)
            if text[0] == "{":
                write(made)
            else:
                with pytest.raises(BadInput, match=r"settings\.json: "):
                    write(made)
    finally:
        path.write_bytes(whole)


LINES = ["3", "[]", "{}", "null", "x", DEEP, '{"stage": 3}', '{"stage": "a", "step": "x"}']
STEPS = ("null", "-1", "1e999", str(10**400), "NaN")
LINES += ['{"stage": "a", "step": STEP}'.replace("STEP", one) for one in STEPS]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:20])
def test_a_log_line_of_any_kind(tmp_path, line):
    path, good = tmp_path / "log.jsonl", '{"stage": "a", "step": 1, "loss": 2.0}'
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(BadInput, match=r"log\.jsonl: line 2 is no log line"):
        read_log(path)
    path.write_text(f"{good}\n{line}")  # a kill may have cut it short
    assert [one["loss"] for one in read_log(path)["a"]] == [2.0]


def test_values_of_a_log_that_cannot_be_drawn(made, light):
    path = made[0] / "log.jsonl"
    whole = path.read_bytes()
    odd = [{"stage": f"s{i}", "step": 1, f"loss{i}": 1.0} for i in range(99)]
    more = {f"name{i}": i for i in range(300)} | {"loss": 10**400, "x": None, "y": [1], "z": "t"}
    try:
        lines = [*odd, {"stage": ["a"], "step": 2, **more}]
        path.write_text("".join(json.dumps(one) + "\n" for one in lines))
        found = read_log(path)
        assert len(found) <= 50 and all("x" not in one for own in found.values() for one in own)
        path.write_text(json.dumps({"stage": "<blink>", "step": 2, **more}) + "\n")
        assert "<blink>" not in write(made)
    finally:
        path.write_bytes(whole)
