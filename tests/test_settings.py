"""Settings to JSON and back."""

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from weaksam_jax.errors import BadSetting
from weaksam_jax.settings import from_plain, to_plain


@dataclass(frozen=True)
class Optim:
    lr: float = 0.1
    milestones: tuple[int, ...] = (1, 2)
    clip: float | None = None
    kind: Literal["sgd", "adamw"] = "sgd"


@dataclass(frozen=True)
class Drop:
    start: int = 3


@dataclass(frozen=True)
class Other:
    epochs: int = 7


@dataclass(frozen=True)
class Config:
    optim: Optim = field(default_factory=Optim)
    drop: Drop | None = field(default_factory=Drop)
    either: Drop | Other = field(default_factory=Drop)
    scales: tuple[tuple[tuple[int, int], ...], ...] = (((1, 2), (3, 4)),)
    init: Path | None = None
    flip: bool = True


CHANGED = Config(
    Optim(0.5, (), 1.0, "adamw"), None, Other(1), (((5, 6),), ((7, 8),)), Path("a/b"), False
)


@pytest.mark.parametrize("config", [Config(), CHANGED])
def test_there_and_back_through_json(config):
    plain = json.loads(json.dumps(to_plain(config), allow_nan=False))
    assert from_plain(Config, plain, "x.json", base=config) == config
    if config == Config():
        assert from_plain(Config, plain, "x.json") == config


def test_what_is_missing_keeps_its_default_or_that_of_the_base():
    values = {"optim": {"lr": 1}, "drop": {"start": 9}}
    found = from_plain(Config, values, "x.json")
    assert found == replace(Config(), optim=Optim(lr=1.0), drop=Drop(9))
    assert type(found.optim.lr) is float, "the JSON of equal settings is equal"
    based = from_plain(Config, values, "x.json", base=CHANGED)
    assert based == replace(CHANGED, optim=replace(CHANGED.optim, lr=1.0), drop=Drop(9))


def test_of_several_kinds_the_one_that_fits_or_that_of_the_base():
    assert from_plain(Config, {"either": {"epochs": 2}}, "x.json").either == Other(2)
    assert from_plain(Config, {"either": {}}, "x.json", base=CHANGED).either == Other(1)
    with pytest.raises(BadSetting, match=r"either\.epochs is unknown"):
        from_plain(Config, {"either": {"epochs": 2}}, "x.json", base=Config())


@pytest.mark.parametrize(
    ("values", "where", "message"),
    [
        ({"optim": {"lrr": 1}}, "optim.lrr", "is unknown; did you mean lr?"),
        ({"qqq": 1}, "qqq", "is unknown; choose from optim, drop, either, scales, init, flip"),
        ({"optim": {"lr": "1"}}, "optim.lr", "is '1', not a number; "),
        ({"optim": {"lr": True}}, "optim.lr", "is True, not a number; "),
        ({"optim": {"milestones": [1.5]}}, "optim.milestones.0", "is 1.5, not an integer; "),
        ({"optim": {"kind": "adam"}}, "optim.kind", "is 'adam', no choice; did you mean adamw?"),
        ({"optim": 3}, "optim", "is no object of settings; "),
        ({"scales": [[[1, 2, 3]]]}, "scales.0.0", "has 3 entries instead of 2; "),
        ({"drop": {"start": None}}, "drop.start", "is None, not an integer; "),
        ({"flip": 1}, "flip", "is 1, not true or false; "),
        ([], "", "is no object of settings; "),
    ],
)
def test_errors_name_the_file_and_the_field(values, where, message):
    with pytest.raises(BadSetting) as caught:
        from_plain(Config, values, "runs/a/settings.json")
    assert caught.value.field == where and caught.value.path == "runs/a/settings.json"
    said = str(caught.value)
    assert said.startswith(f"runs/a/settings.json: {where} {message}".replace("  ", " ")), said


def test_a_value_without_a_default_must_be_there():
    @dataclass(frozen=True)
    class Needs:
        out: str

    with pytest.raises(BadSetting, match=r"inner is incomplete \(.*'out'"):
        from_plain(Needs, {}, "x.json", field="inner")


def test_neither_jax_nor_torch_is_imported():
    code = "import sys, weaksam_jax.settings; print({'jax', 'torch'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
