"""Every command's --help, and its usage errors: one line on stderr and status 2."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import bridge
from bridge.runtime.command import run_command
from weaksam_jax.cli import entry_point
from weaksam_jax.errors import BadInput

NAMES = ("convert", "export", "pack", "released_pickles", "train_weaktr")
MISSING = {
    "convert": "--to PATH",
    "export": "--data PATH --split STR --out PATH",
    "pack": "--store PATH --split STR",
    "train_weaktr": "--data PATH --deit PATH --out PATH",
}


def command(name):
    return importlib.import_module(f"bridge.{name}").main


def test_these_are_all_commands():
    files = Path(bridge.__file__).parent.glob("[!_]*.py")
    found = [path.stem for path in files if "def main(" in path.read_text()]
    assert sorted(found) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_begins_with_what_it_does_and_an_example(name, capsys):
    with pytest.raises(SystemExit) as end:
        command(name)(["--help"])
    assert not end.value.code
    paragraphs = capsys.readouterr().out.split("\n\n")
    assert paragraphs[0].startswith(f"usage: python -m bridge.{name} ")
    assert paragraphs[1].strip().endswith(".") and len(paragraphs[1].strip()) < 100
    assert paragraphs[2].strip().startswith(f"Example: python -m bridge.{name} ")


@pytest.mark.parametrize("name", NAMES)
def test_usage_errors_are_one_line(name, capsys):
    assert entry_point(command(name), ["--no-such-flag", "1"]) == 2
    assert entry_point(command(name), []) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.endswith(f"; see python -m bridge.{name} --help")
        assert not set(line) & set("│╭╰─")
    assert lines[0].startswith("error: --no-such-flag: is no flag of this command; ")
    assert lines[1].startswith("error: the command line: ") and MISSING.get(name, "") in lines[1]


def test_values_that_do_not_fit_are_named():
    with pytest.raises(BadInput, match=r"choice 'vgg19'.*'vgg16'.*; did you mean vgg16\?"):
        command("convert")(["vgg19", "--to", "a.safetensors"])
    with pytest.raises(BadInput, match=r"^--form: .*; did you mean --from\?"):
        command("convert")(["vgg16", "--to", "a.safetensors", "--form", "2"])
    with pytest.raises(BadInput, match=r"--per-shard: .*'many'"):
        command("pack")(["--store", "a", "--split", "b", "--per-shard", "many"])


def test_errors_of_the_command_itself_are_not_usage():
    """What a command raises or prints is its own."""

    def fails(count: int) -> None:
        """Fails.

        Args:
            count: of something.
        """
        print("begun", file=sys.stderr)
        raise SystemExit(count)

    with pytest.raises(SystemExit) as end:
        run_command(fails, ["--count", "3"], "prog", "About.")
    assert end.value.code == 3


def test_the_package_lists_its_commands():
    done = subprocess.run(
        [sys.executable, "-m", "bridge"], capture_output=True, text=True, check=True
    )
    listed = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == [f"bridge.{name}" for name in NAMES]
    done = subprocess.run(
        [sys.executable, "-m", "bridge", "nonsense"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: python -m bridge: has no nonsense; give one of those above\n"
