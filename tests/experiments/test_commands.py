"""`weaksam NAME`: every command is listed, found, and ends as its module does."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.pipeline.commands import commands, listing, module_of, summary
from weaksam_jax.errors import BadInput

ROOT = Path(__file__).parents[2]


def weaksam(*argv):
    return subprocess.run(
        [sys.executable, "-m", "experiments", *argv], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_alone_it_lists_all_commands(argv):
    done = weaksam(*argv)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.strip() == listing()


def test_every_command_has_one_line():
    lines = listing().splitlines()
    names = [name for name, _, _ in commands()]
    assert len(set(names)) == len(names)
    assert {"voc07", "voc12", "coco14", "custom", "predict", "detect", "evaluate"} <= set(names)
    assert {"pgt", "compare", "paper.ablation", "bench", "bridge.export"} <= set(names)
    for name, _, path in commands():
        (line,) = [one for one in lines if one.split()[:1] == [name]]
        assert summary(path) in line and summary(path), name
        assert len(line) < 140, line


def test_at_most_twelve_files_lie_on_top():
    assert len(list((ROOT / "experiments").glob("*.py"))) <= 12


def test_an_unknown_command_is_refused_with_the_nearest_one():
    done = weaksam("predcit", "--run", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: predcit: is no command; did you mean predict?\n"
    with pytest.raises(BadInput, match="weaksam --help lists all commands"):
        module_of("qqqqqqqq")


def test_a_command_by_name_is_the_module(tmp_path):
    named = weaksam("compare", str(tmp_path))
    module = subprocess.run(
        [sys.executable, "-m", "experiments.compare", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (named.returncode, named.stdout) == (module.returncode, module.stdout) == (2, "")
    assert named.stderr == module.stderr and "metrics.json" in named.stderr


def test_the_usage_names_the_command_as_it_was_called():
    assert weaksam("evaluate", "--help").stdout.startswith("usage: weaksam evaluate ")
