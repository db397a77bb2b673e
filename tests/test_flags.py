"""Command lines of dataclasses: short and whole help, optional parts, one line for every fault."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from weaksam_jax.errors import BadInput
from weaksam_jax.flags import FLAT, flag_names, parse, peek


@dataclass(frozen=True)
class Drop:
    start: int = 3
    """Step."""


@dataclass(frozen=True)
class Detector:
    lr: float = 0.1
    """Learning rate."""
    tta_flip: bool = True
    """Mirrored too."""
    drop: Drop | None = None
    """Drop of RoIs."""
    scales: tuple[tuple[tuple[int, int], ...], ...] = (((1, 2),),)


@dataclass(frozen=True)
class Config:
    wsod: Detector = field(default_factory=Detector)
    """The MIL detector."""
    sam: str = "mini"
    """Which SAM."""


@dataclass(frozen=True)
class Job:
    data: str
    """The data set."""
    wsod: Literal["mist", "oicr"] = "mist"
    """Method."""
    settings: Annotated[Config, FLAT] = field(default_factory=Config)


START = Job(tyro.MISSING, settings=Config(Detector(drop=Drop(9))))


def job(*argv, default=START):
    return parse(Job, ["--data", "d", *argv], "What it does.", "job", default)


def test_settings_have_no_prefix_and_may_share_a_name_with_a_flag():
    found = job("--wsod", "oicr", "--wsod.lr", "0.5", "--sam=big", "--wsod.no-tta-flip")
    assert found.wsod == "oicr" and found.settings.sam == "big"
    assert found.settings.wsod == Detector(0.5, False, Drop(9))
    assert job("--wsod.scales.0", "7", "8").settings.wsod.scales == (((7, 8),),)
    assert job("--wsod.tta_flip", default=None).settings.wsod.tta_flip


def test_an_optional_part_goes_and_comes():
    assert job("--wsod.drop", "none").settings.wsod.drop is None
    assert job("--wsod.drop=none", "--wsod.lr", "1").settings.wsod == Detector(1.0)
    without = Job(tyro.MISSING)
    assert job("--wsod.drop.start", "5", default=without).settings.wsod.drop == Drop(5)
    assert job(default=without).settings.wsod.drop is None


def test_help_is_short_and_help_all_is_whole(capsys):
    said = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as caught:
            parse(Job, [flag], "What it does.", "job", START)
        assert caught.value.code in (0, None)
        said[flag] = capsys.readouterr().out
        assert "What it does." in said[flag] and "--data" in said[flag]
        assert "--help-all shows every setting" in said[flag]
    assert "--wsod.lr" not in said["--help"] and "Which SAM" not in said["--help"]
    assert all(name in said["--help-all"] for name in ("--wsod.lr", "--wsod.drop.start", "--sam"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dta", "x"], "--dta: is no flag of this command; did you mean --data?"),
        (["--data", "d", "--wsod.lrr", "1"], "--wsod.lrr: is no flag of this command; did you"),
        (["--data", "d", "--wsod.opt.qqqqqqqq"], "is no flag of this command; "),
        (["--data", "d", "--wsod", "mst"], "the command line: invalid choice 'mst' for argument"),
        (["--data", "d", "--wsod.lr", "x"], "the command line: Error parsing --wsod.lr: could not"),
        (["--data"], "the command line: Missing value for argument '--data'"),
        ([], "the command line: Missing from python -m experiments.job: --data STR"),
        (["--data", "d", "extra"], "the command line: Unrecognized options: extra; see python -m"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_a_hint(argv, message):
    with pytest.raises(BadInput) as caught:
        parse(Job, argv, "What it does.", "job", START)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_program_is_named_as_it_was_called(monkeypatch, capsys):
    for called, shown in (("weaksam job", "weaksam job"), ("x.py", "python -m experiments.job")):
        monkeypatch.setattr(sys, "argv", [called, "--help"])
        with pytest.raises(SystemExit):
            parse(Job, None, "", "job", START)
        assert f"usage: {shown} " in capsys.readouterr().out


def test_flags_before_parsing():
    argv = ["--data", "a", "--data=b", "--wsod.drop_start", "3", "photo.jpg"]
    assert (peek(argv, "data"), peek(argv, "wsod.drop-start")) == ("b", "3")
    assert peek(argv, "seed") is None and peek(["--data"], "data") is None


def test_every_flag_of_the_help_is_known(capsys):
    with pytest.raises(SystemExit):
        parse(Job, ["--help-all"], "", "job", START)
    said = capsys.readouterr().out
    names = set(flag_names(Job))
    assert {"data", "wsod", "wsod.lr", "wsod.no-tta-flip", "wsod.drop.start", "sam"} <= names
    assert "settings" not in names and "wsod.drop" not in names
    shown = {word.strip(",") for word in said.split() if word.startswith("--wsod.")}
    assert {one.removeprefix("--").removesuffix(".0") for one in shown} <= names


def test_neither_jax_nor_torch_is_imported():
    import subprocess

    code = "import sys, weaksam_jax.flags; print({'jax', 'torch'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "set()"


ROOT = Path(__file__).parents[1]
