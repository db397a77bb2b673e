"""The lock file: exact versions with hashes that satisfy the bounds of pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYTHON = {"python_version": "3.11", "sys_platform": "linux", "extra": ""}
# Installed first, see README.md; the others bring packages that no CPU needs.
FIRST, LEFT_OUT = {"torch", "torchvision"}, {"cuda12", "tpu", "tfds"}
# The first versions without the advisories that were known when the bounds were set.
SAFE = {"jinja2": "3.1.6", "pillow": "12.2", "tqdm": "4.66.3", "setuptools": "78.1.1"}
SAFE |= {"opencv-contrib-python-headless": "4.12.0.88"}


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def demands(left_out=frozenset()):
    """Every requirement of the project, of its build and of its extras."""
    content = project()
    extras = content["project"]["optional-dependencies"]
    lists = [content["project"]["dependencies"], content["build-system"]["requires"]]
    lists += [own for name, own in extras.items() if name not in left_out]
    return [Requirement(one) for own in lists for one in own]


def locked():
    """Version and hashes of every package of the lock file, by canonical name."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", text)).splitlines()
    found = {}
    for line in lines:
        pin, *hashes = line.partition(" ;")[0].split(" --hash=")
        hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}(?= |$)", line)
        name, _, version = pin.split()[0].partition("==")
        found[canonicalize_name(name)] = (version, hashes)
    return found


def test_the_lock_satisfies_every_bound():
    found = locked()
    wanted = [one for one in demands(LEFT_OUT) if one.marker is None or one.marker.evaluate(PYTHON)]
    assert len(wanted) > 25
    for one in wanted:
        name = canonicalize_name(one.name)
        if name in FIRST:
            assert name not in found and str(one.specifier).startswith("==")
        else:
            assert one.specifier.contains(found[name][0]), (name, found[name][0])


def test_every_entry_has_one_version_and_hashes():
    found = locked()
    assert len(found) > 80
    for name, (version, hashes) in found.items():
        assert re.fullmatch(r"[0-9][0-9A-Za-z.+]*", version), name
        assert hashes, name
    assert not [name for name in found if name.startswith(("nvidia", "triton", "cuda"))]


def test_no_address_stands_in_the_lock():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//|@|--index|--find-links|--extra", text)


@pytest.mark.parametrize("name", SAFE)
def test_lower_bounds_leave_out_versions_with_known_advisories(name):
    own = [one.specifier for one in demands() if canonicalize_name(one.name) == name]
    assert own
    for specifier in own:
        (low,) = (spec.version for spec in specifier if spec.operator == ">=")
        assert SpecifierSet(f">={SAFE[name]}").contains(low)
