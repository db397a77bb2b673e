"""The journal of a long detection and the log of a run: goes on, or refused by line."""

import json

import pytest
from refusals import refusal

from weaksam_jax import runlog
from weaksam_jax.engine.journal import Journal, gather, own_part
from weaksam_jax.report.artefacts import read_log

ROW = {"image_id": 1, "category_id": 2, "bbox": [0.5, 1, 2, 3], "score": 0.5, "file_name": "1.jpg"}
HEAD = json.dumps({"key": "k"})
GOOD = json.dumps({"1": [ROW], "7": []})
# What no line of either file is, though it may be JSON.
ODD = {
    "not UTF-8": b"\xff\xfe",
    "damaged": b'{"1": [{"im',
    "nested deeply": b"[" * 100_000,
    "zeros": b"\0\0\0",
    "a number of many digits": b'{"1": ' + b"9" * 5000 + b"}",
    "a list": b"[]",
    "null": b"null",
    "empty text": b'""',
    "a number": b"5",
}
NO_RESULTS = {
    "a number of boxes": {"1": 5},
    "an object": {"1": {}},
    "no id": {"x": []},
    "another id": {"3": [ROW]},
    "a negative id": {"-1": []},
    "another digit": {"١": []},
    "rows that are none": {"1": [5, "x", []]},
    "text": {"1": "ab"},
    **{
        f"no {name}": {"1": [{k: v for k, v in ROW.items() if k != name}]} for name in list(ROW)[:4]
    },
    "a box of three": {"1": [ROW | {"bbox": [1, 2, 3]}]},
    "an inverted box": {"1": [ROW | {"bbox": [1, 2, -3, 4]}]},
    "a box of NaN": {"1": [ROW | {"bbox": [1, 2, float("nan"), 4]}]},
    "a score that is text": {"1": [ROW | {"score": "0.5"}]},
    "an infinite score": {"1": [ROW | {"score": float("inf")}]},
    "a category that is text": {"1": [ROW | {"category_id": "cat"}]},
}


def journal(folder, *lines: str | bytes):
    path = folder / "unfinished.jsonl"
    path.write_bytes(b"\n".join(one if isinstance(one, bytes) else one.encode() for one in lines))
    return path


def opened(path):
    return Journal(path, "k")


def held(one: Journal) -> dict:
    return {image: one.rows(image) for image in one.done}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_a_damaged_line_of_a_journal_is_named(tmp_path, odd):
    path = journal(tmp_path, HEAD, odd, GOOD, "")
    before = path.read_bytes()
    refusal(opened, path, "unfinished.jsonl", "line 2 is no line of COCO results", "move the file")
    assert path.read_bytes() == before


@pytest.mark.parametrize("odd", NO_RESULTS.values(), ids=NO_RESULTS)
@pytest.mark.parametrize("last", [False, True])
def test_a_line_of_other_things_is_no_result(tmp_path, odd, last):
    lines = [GOOD, json.dumps(odd)] if last else [json.dumps(odd), GOOD]
    path = journal(tmp_path, HEAD, *lines, "")
    refusal(opened, path, f"line {3 if last else 2} is no line of COCO results by image")


@pytest.mark.parametrize("first", [b"[]", b"{}", b'{"key": 5}', b"null", b"\xff", b"my notes", b""])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path, first):
    path = journal(tmp_path, first, "more", "lines")
    before = path.read_bytes()
    refusal(opened, path, "unfinished.jsonl: line", "move the file away")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "end", [b"", b"\n", GOOD.encode()[:-1], b"\xff\n", b"\0" * 50, b"[" * 100_000]
)
def test_a_line_cut_short_is_dropped(tmp_path, end):
    path = journal(tmp_path, HEAD, GOOD, end)
    assert held(opened(path)) == {1: [ROW], 7: []}
    assert path.read_text() == f"{HEAD}\n{GOOD}\n"
    kept = opened(path)
    kept.add({9: [ROW | {"image_id": 9}]})
    assert opened(path).done == kept.done and kept.rows(9)[0]["image_id"] == 9


def test_a_last_line_without_its_end_is_kept_and_the_next_begins_anew(tmp_path):
    path = journal(tmp_path, HEAD, GOOD)
    opened(path).add({9: []})
    assert held(opened(path)) == {1: [ROW], 7: [], 9: []}


def test_the_parts_of_several_processes_become_one(tmp_path):
    """What a process wrote, an older part that was not put in, one of another key."""
    path = journal(tmp_path, HEAD, GOOD, "")
    for index, key, image in ((0, "k", 7), (1, "k", 3), (11, "k", 5), (2, "other", 8)):
        rows = [ROW | {"image_id": image, "score": index}]
        Journal(own_part(path, index), key).add({image: rows})
    (tmp_path / "unfinished-x.jsonl").write_text("mine")
    whole = gather(path, "k")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["unfinished-x.jsonl", path.name]
    assert held(whole).keys() == {1, 7, 3, 5} and whole.rows(7) == []
    assert whole.rows(5)[0]["score"] == 11
    assert held(opened(path)) == held(whole)


def test_a_journal_of_other_settings_begins_anew(tmp_path):
    path = journal(tmp_path, json.dumps({"key": "other"}), '{"1": 5}', "")
    assert opened(path).done == {} and path.read_text() == HEAD + "\n"


ENTRIES = {
    **ODD,
    "an object": b"{}",
    "no step": b'{"stage": "a"}',
    "no stage": b'{"step": 1}',
    "a step as text": b'{"stage": "a", "step": "1"}',
    "a step of half": b'{"stage": "a", "step": 1.5}',
    "a step that is true": b'{"stage": "a", "step": true}',
    "a stage that is a list": b'{"stage": [], "step": 1}',
}


def log(folder, *lines: bytes):
    path = folder / "log.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


@pytest.mark.parametrize("odd", ENTRIES.values(), ids=ENTRIES)
def test_a_damaged_line_of_a_log_is_named(tmp_path, odd):
    path = log(tmp_path, b'{"stage": "a", "step": 1}', odd, b'{"stage": "b", "step": 1}', b"")
    before = path.read_bytes()
    refusal(
        lambda one: runlog.forget(one, "a", 0), path, "log.jsonl: line 2 is no log line", "move"
    )
    assert path.read_bytes() == before


@pytest.mark.parametrize("odd", [b"\xff", b"{", b"[" * 100_000, b"\0\0"])
def test_the_report_names_it_too_and_passes_over_a_last_one(tmp_path, odd):
    one = b'{"stage": "a", "step": 1, "loss": 2.0}'
    with pytest.raises(Exception, match="line 2 is no log line"):
        read_log(log(tmp_path, one, odd, one))
    assert [row["loss"] for row in read_log(log(tmp_path, one, odd))["a"]] == [2.0]


@pytest.mark.parametrize("end", [b"", b'{"stage": "b", "st', b"\0\0\0", b"\xff\n"])
def test_later_steps_are_forgotten_and_a_cut_line(tmp_path, end):
    lines = [json.dumps({"stage": s, "step": n, "x": 0.1}) for n in (1, 2, 3) for s in "ab"]
    path = log(tmp_path, *map(str.encode, lines), end)
    runlog.forget(path, "a", 1)
    kept = [one for one in lines if json.loads(one)["stage"] == "b" or '"step": 1' in one]
    assert path.read_text() == "".join(f"{one}\n" for one in kept) and len(kept) == 4
    runlog.forget(tmp_path / "missing.jsonl", "a", 1)
