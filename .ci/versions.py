"""The core of the suite with the oldest or the newest allowed packages.

    python3.11 .ci/versions.py oldest                      every lower bound of pyproject.toml
    python3.12 .ci/versions.py newest --without-torch      what pip finds below the upper bounds

Makes build/versions/NAME-PYTHON afresh, installs, says what is installed, and runs the tests of
`TESTS`. Without PyTorch the tests that import it, themselves or through a module of this
repository, are left out and named. What follows `--` goes to pytest.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from boundaries import TORCH, imports

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    *("tests/engine", "tests/ops", "tests/losses", "tests/backbones", "tests/data"),
    *("tests/detectors/test_detectors.py", "tests/detectors/mil/test_mil_train.py"),
    *("tests/detectors/mil/test_mil_detect.py", "tests/detectors/mil/test_mining.py"),
    *("tests/detectors/faster_rcnn/test_faster_rcnn_torchvision.py", "tests/evaluate"),
    *("tests/detectors/faster_rcnn/test_training.py", "tests/examples", "tests/report"),
    *("tests/test_flags.py", "tests/test_settings.py", "tests/test_pgt.py"),
)
# Those of PyTorch's side, and the whole pipeline as its own process.
TORCH_TESTS = (
    *("tests/bridge/sam/test_sam_mini.py", "tests/bridge/sam/test_pseudo_masks.py"),
    *("tests/bridge/proposals/test_export.py", "tests/bridge/proposals/test_selective_search.py"),
    "tests/experiments/test_end_to_end.py",
)
TORCH_PACKAGES = (*TORCH, "segment-anything", "mobilesam-mirror")


def requirements(project: dict, which: str, torch: bool) -> list[str]:
    """What pip installs: the dependencies and the extra `dev` ("oldest": dependencies at their
    lower bounds), without PyTorch's if so asked."""
    dependencies = project["dependencies"]
    if which == "oldest":
        dependencies = [re.sub(r">=([^,;]+)(,<[^;]+)?", r"==\1", one) for one in dependencies]
    extras = project["optional-dependencies"]
    every = [*dependencies, *extras["dev"], *(extras["light"] if torch else ())]
    if torch:
        return every
    return [one for one in every if re.split(r"[^\w-]", one)[0] not in TORCH_PACKAGES]


def install(python: Path, wanted: list[str]) -> None:
    """Installs into a virtual environment; torch first, as the Makefile does."""
    first = [one for one in wanted if one.startswith("torch==")]
    steps = ([*first], wanted, ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
    for step in filter(None, steps):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *step], check=True)


def test_files(names: Iterable[str]) -> list[Path]:
    """The files that folders and files of the repository stand for."""
    paths = [ROOT / name for name in names]
    if missing := [path for path in paths if not path.exists()]:
        raise FileNotFoundError(missing)
    return [file for p in paths for file in (sorted(p.rglob("test_*.py")) if p.is_dir() else [p])]


@cache
def needs_torch(path: Path) -> bool:
    """Whether a file imports PyTorch, itself or through a file of this repository."""
    names = {module for _, module in imports(path, path.relative_to(ROOT).as_posix())}
    if any(name.partition(".")[0] in TORCH for name in names):
        return True
    return any(needs_torch(file) for file in set(map(file_of, names)) - {None, path})


def file_of(module: str) -> Path | None:
    """The file of this repository that a module (or a member of one) stands in."""
    parts = module.split(".")
    for count in range(len(parts), 0, -1):
        for folder in (ROOT, ROOT / "tests" / "helpers", ROOT / "tests" / "oracles"):
            place = folder.joinpath(*parts[:count])
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if file.is_file():
                    return file
    return None


def environment(which: str, torch: bool) -> Path:
    """Makes the virtual environment; its interpreter."""
    folder = ROOT / "build/versions" / f"{which}-{sys.version_info[0]}.{sys.version_info[1]}"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    install(folder / "bin" / "python", requirements(project, which, torch))
    return folder / "bin" / "python"


def chosen_files(torch: bool) -> list[Path]:
    """The test files to run; names those that are left out."""
    files = test_files((*TESTS, *TORCH_TESTS) if torch else TESTS)
    left_out = [] if torch else [file for file in files if needs_torch(file)]
    if not torch:
        names = [*(file.relative_to(ROOT).as_posix() for file in left_out), *TORCH_TESTS]
        print("left out, they need PyTorch:", *names, sep="\n  ")
    return [file for file in files if file not in left_out]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("which", choices=("oldest", "newest"))
    parser.add_argument("--without-torch", action="store_true")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    options = parser.parse_args()
    python = environment(options.which, not options.without_torch)
    subprocess.run([python, "-m", "pip", "list", "--format=freeze"], check=True)
    files = chosen_files(not options.without_torch)
    command = [python, "-m", "pytest", *options.pytest, *files]
    variables = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
