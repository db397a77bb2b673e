"""Names of files and classes do not steer the terminal."""

import io
import sys
from pathlib import Path

import pytest

from experiments.compare import table as compared
from experiments.evaluate import table as evaluated
from weaksam_jax.cli import entry_point
from weaksam_jax.errors import BadFile, BadInput, printable
from weaksam_jax.progress import close_bars, progress_bar, say

RED = "\x1b[31mred\x07"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (RED, "\\x1b[31mred\\x07"),
        ("a\r\nb\tc\x7f\x9b", "a\\r\\nb\\tc\\x7f\\x9b"),
        ("gnp.\u202egpj", "gnp.\\u202egpj"),
        ("\u2028\ud800", "\\u2028\\ud800"),
        ("Straße 猫 🐈 👩\u200d👧 a\\b 'é'", "Straße 猫 🐈 👩\u200d👧 a\\b 'é'"),
    ],
)
def test_what_steers_is_escaped_and_nothing_else(text, shown):
    assert printable(text) == shown and printable(shown) == shown


@pytest.mark.parametrize("kind", [BadInput, BadFile])
def test_messages_of_errors(kind, capsys):
    def main(argv):
        raise kind(f"{RED}.json", f"class {RED}\nis wrong", f"mend {RED}")

    assert entry_point(main) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: \\x1b[31mred\\x07.json: class ") and said.count("\n") == 1
    assert "\x1b" not in said and "\x07" not in said


def test_paths_that_cannot_be_used(tmp_path, capsys):
    def main(argv):
        (tmp_path / RED).mkdir(exist_ok=True)
        (tmp_path / RED).open()

    assert entry_point(main) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_tables():
    result = {"metric": "voc07", "dataset": RED, "split": "a", "images": 1, "per_class": {RED: 5.0}}
    said = evaluated(result)
    assert "\\x1b[31mred\\x07    5.00" in said and "\x1b" not in said
    assert "| a |" in compared(["a"], [{"seconds": {"data": "60"}}])


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_what_a_stream_cannot_show_is_escaped(monkeypatch, name):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding="ascii", errors="strict"))

    def main(argv):
        print("猫 ±", file=getattr(sys, name), flush=True)

    assert entry_point(main) == 0 and raw.getvalue() == b"\\u732b \\xb1\n"


def test_progress_bars(capsys):
    assert sum(progress_bar([1, 2], f"read {RED}")) == 3
    say(f"warning: {RED}")
    progress_bar(None, RED, total=5).update()
    close_bars()
    said = capsys.readouterr().err
    assert "read \\x1b[31mred\\x07: 100%" in said and "warning: \\x1b[31mred" in said
    assert "| 1/5 [" in said and not {"\x1b", "\x07"} & set(said)


def test_every_progress_bar_is_made_in_one_place():
    root = Path(__file__).parents[1]
    files = [
        one
        for name in ("weaksam_jax", "bridge", "experiments")
        for one in root.glob(f"{name}/**/*.py")
    ]
    users = [one for one in files if "import tqdm" in one.read_text(encoding="utf-8")]
    assert [one.relative_to(root).as_posix() for one in users] == ["weaksam_jax/progress.py"]
