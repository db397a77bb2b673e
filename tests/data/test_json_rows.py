"""Typed rows of a JSON list: what is clear is read, what is not names its entry."""

from functools import partial

import numpy as np
import pytest

from weaksam_jax.data.json_rows import Rows, as_box, as_flag, as_integer, as_number, as_text, shown
from weaksam_jax.errors import BadFile

READ = {
    as_integer: [(5, 5), ("5", 5), (" 007 ", 7), (5.0, 5), ("5.0", 5), ("+5", 5), (0, 0),
                 (2**60, 2**60), (np.int64(3), 3)],
    as_number: [(1, 1.0), ("0.9", 0.9), ("-1e-3", -0.001), (" .5 ", 0.5), (np.float32(0.5), 0.5)],
    as_flag: [(0, False), (1, True), ("0", False), ("1", True), ("false", False), ("True", True),
              (False, False), (True, True), (0.0, False), ("no", False), ("YES", True)],
    as_text: [("a", "a"), (7, "7"), (" b ", " b ")],
    as_box: [([1, 2, 3, 4], [1, 2, 3, 4]), (["1", 2.5, 3, 4], [1, 2.5, 3, 4]),
             ((0, 0, 0, 0), [0, 0, 0, 0])],
}  # fmt: skip
NUMBERLESS = [None, True, "", "x", [], [1], {}, {"$oid": "5f"}, float("nan"), float("inf"), "nan"]
REFUSED = {
    as_integer: [*NUMBERLESS, 1.5, "1.5", -1, "-1", 2**63, "9" * 30, 10**400, 1e300, 2.0**54,
                 "1_0", "٣", "0x5"],
    as_number: [*NUMBERLESS, 10**400, "1e999", "Infinity", "1,5", "1_0", "٣"],
    as_flag: [None, 2, -1, 0.5, "2", "", "maybe", [], {}, float("nan")],
    as_text: [None, True, 1.5, "", "  ", [], {}],
    as_box: [None, 3, "abcd", [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, None], [1, 2, 3, True],
             [1, 2, 3, [4]], {"x": 1}, [1, 2, -3, 4], [0, 0, 1e12, 1], [0, 0, 10**400, 1],
             [float("nan"), 0, 1, 1]],
}  # fmt: skip


@pytest.mark.parametrize("read", READ)
def test_what_is_clear_is_read(read):
    for value, meant in READ[read]:
        found = read(value)
        assert found == meant and type(found) is type(meant), value


@pytest.mark.parametrize("read", REFUSED)
def test_what_is_not_clear_is_refused(read):
    for value in REFUSED[read]:
        with pytest.raises(ValueError, match=r"^(is|lies) "):
            read(value)


def test_a_value_of_any_size_is_shown_on_a_short_line():
    deep: list = []
    for _ in range(500):
        deep = [deep]
    for value in (deep, "x" * 10**6, 10**4000, {"a": ["b" * 999] * 99}, list(range(10**5))):
        assert len(shown(value)) < 400 and "\n" not in shown(value)
    assert [shown(one) for one in (None, True, 1, "a")] == ["null", "true", "1", "'a'"]


def rows_of(values, name="annotations"):
    return Rows(values, name, partial(BadFile, "a.json"))


def test_columns_are_the_rows():
    plain = rows_of([{"a": 3, "b": 0.5, "c": [0, 1, 2, 3], "d": 0}, {"a": 4, "b": 2, "c": [1] * 4}])
    mixed = rows_of([{"a": "3", "b": "0.5", "c": ["0", 1, 2, 3], "d": "0"},
                     {"a": 4.0, "b": 2, "c": (1, 1, 1, 1), "d": None}])  # fmt: skip
    for rows in (plain, mixed):
        assert rows.integers("a").tolist() == [3, 4] and rows.numbers("b").tolist() == [0.5, 2]
        assert rows.boxes("c").tolist() == [[0, 1, 2, 3], [1, 1, 1, 1]]
        assert rows.flags("d").tolist() == [False, False]
    empty = rows_of([])
    assert empty.integers("a").shape == (0,) and empty.boxes("c").shape == (0, 4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (rows_of([{"a": 1}, {"a": None}]), r"a.json: annotations\[1\]: a is no integer \(null\); "),
        (rows_of([{"a": 1}, {"id": 7}]), r"annotations\[1\] \(id 7\): has no a; "),
        (rows_of([{"a": 1}, 5], ""), r"entry 1: is no object \(5\); "),
        (rows_of([{"a": 1}, "a"], ""), r"entry 1: is no object \('a'\); "),
        (rows_of([{"a": 1}, [1]], ""), r"entry 1: is no object \(\[1\]\); "),
    ],
)
def test_faults_name_file_entry_and_field(rows, message):
    with pytest.raises(BadFile, match=message):
        rows.integers("a")
    with pytest.raises(BadFile, match=message.partition("a is")[0]):
        for row in rows:
            row.integer("a")


def test_an_optional_field_may_be_missing_or_null_but_not_wrong():
    first, second, third = rows_of([{}, {"a": None}, {"a": "x"}])
    assert first.integer("a", default=3) == second.integer("a", default=3) == 3
    with pytest.raises(BadFile, match=r"annotations\[2\]: a is no integer"):
        third.integer("a", default=3)
