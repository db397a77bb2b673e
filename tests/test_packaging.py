"""The wheel: what is in it, what it is called, and that it works without the checkout."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from unittest import mock

import pytest

import weaksam_jax

ROOT = Path(__file__).parent.parent
PACKAGES = ("weaksam_jax", "bridge", "experiments")
DATA = {
    "weaksam_jax/py.typed",
    "weaksam_jax/report/template.html",
    "bridge/sam/mini/README.md",
    "bridge/sam/mini/sam_mini.safetensors",
    "bridge/sam/mini/sam_mini_lite.safetensors",
}
# In an interpreter that finds the wheel's content first: every module, the data, the commands.
ALONE = """
import importlib, pathlib, sys
from importlib.metadata import distribution, entry_points
root = pathlib.Path(sys.argv[1])
for name in sys.argv[2:]:
    module = importlib.import_module(name)
    assert root in pathlib.Path(module.__file__).parents, module.__file__
assert root in pathlib.Path(distribution("weaksam-jax").locate_file("x")).parents
script, = entry_points(group="console_scripts", name="weaksam")
plugins = {one.name: one.load() for one in entry_points(group="weaksam_jax.plugins")}
from bridge.sam.mini import load_sam_mini
print(sorted(plugins), sum(p.numel() for p in load_sam_mini("sam_mini").parameters()) > 1e6)
sys.argv = ["weaksam", "--help"]
sys.exit(script.load()())
"""


def tracked(folder: str) -> set[str]:
    """Files of a folder as they should be packed, relative to the repository."""
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return {p.relative_to(ROOT).as_posix() for p in paths if "__pycache__" not in p.parts}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources (pip would leave its build/ in the checkout)."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    hidden = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*PACKAGES, "examples", "tests", "docs"):
        shutil.copytree(ROOT / name, source / name, ignore=hidden)
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    command = [sys.executable, "-m", "pip", "wheel", *options, source]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SetuptoolsDeprecationWarning" not in done.stdout + done.stderr
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def metadata(unpacked: Path) -> Message:
    return Parser().parsestr(next(unpacked.glob("*.dist-info/METADATA")).read_text())


def test_it_has_every_file_of_the_packages_and_nothing_else(unpacked):
    files = {p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*") if p.is_file()}
    files = {name for name in files if ".dist-info/" not in name}
    assert files == set().union(*map(tracked, PACKAGES))
    assert {name for name in files if not name.endswith(".py")} == DATA


def test_its_metadata(wheel, unpacked):
    found = metadata(unpacked)
    assert wheel.name == f"weaksam_jax-{weaksam_jax.__version__}-py3-none-any.whl"
    assert found["Version"] == weaksam_jax.__version__
    assert found["License-Expression"] == "Apache-2.0"
    assert found["License-File"] == "LICENSE"
    licence = next(unpacked.glob("*.dist-info/licenses/LICENSE")).read_text()
    assert licence == (ROOT / "LICENSE").read_text()
    assert found["Requires-Python"] == "<3.13,>=3.11"
    assert "# weaksam-jax" in found.get_payload()
    extras = set(found.get_all("Provides-Extra"))
    assert extras == {"light", "clip", "cuda12", "tpu", "tfds", "docs", "dev"}


def test_its_entry_points(unpacked):
    text = next(unpacked.glob("*.dist-info/entry_points.txt")).read_text()
    assert text.split() == [
        "[console_scripts]",
        *("weaksam", "=", "experiments.__main__:main"),
        "[weaksam_jax.plugins]",
        *("masks", "=", "bridge.plugins:masks", "tags", "=", "bridge.plugins:tags"),
    ]


def test_it_works_without_the_checkout(unpacked, tmp_path):
    names = [
        ".".join(p.relative_to(unpacked).with_suffix("").parts) for p in unpacked.rglob("*.py")
    ]
    names = [name.removesuffix(".__init__") for name in names]
    names = sorted(name for name in names if not name.endswith("__main__"))
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(unpacked), *names],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, *listing = done.stdout.splitlines()
    assert first == "['masks', 'tags'] True"
    commands = {line.split()[0] for line in listing if line.startswith("  ")}
    assert {"voc07", "custom", "predict", "paper.ablation", "bench", "bridge.convert"} <= commands


def test_every_dependency_is_bounded_on_both_sides():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounded = re.compile(r"[\w-]+(\[\w+\])?(==[\d.]+|>=[\d.]+,<[\d.]+)(;.*)?")
    extras = project["optional-dependencies"]
    free = {"jax[cuda12]", "jax[tpu]"}  # bounded by jax itself
    every = [*project["dependencies"], *(one for name in extras for one in extras[name])]
    assert {one for one in every if not bounded.fullmatch(one)} == free


def test_the_version_is_the_same_wherever_it_is_written():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE).group(1) == weaksam_jax.__version__
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest.group(1) == weaksam_jax.__version__


def test_the_tests_of_the_oldest_and_newest_packages_exist():
    """.ci/versions.py names files and folders."""
    spec = importlib.util.spec_from_file_location("versions", ROOT / ".ci/versions.py")
    assert spec is not None and spec.loader is not None
    versions = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, "path", [str(ROOT / ".ci"), *sys.path]):
        spec.loader.exec_module(versions)
    assert len(versions.test_files((*versions.TESTS, *versions.TORCH_TESTS))) > 50
