"""The documentation against the repository: links, commands, citations, paths, the site, README."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PROVENANCE = DOCS / "provenance"
PAGES = (
    *(ROOT / f"{one}.md" for one in ("README", "CONTRIBUTING", "CHANGELOG")),
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "bridge").rglob("*.md")),
)
# Pages of provenance name files of other repositories, the log those of earlier commits.
OWN_PATHS = [
    page
    for page in PAGES
    if page.parent != PROVENANCE and page not in (DOCS / "experiments_log.md", DOCS / "results.md")
]
SOURCES = ("weaksam_jax", "bridge", "experiments", "examples", "tests")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
MODULE = re.compile(r"python -m ((?:experiments|bridge)[\w.]*)")
SCRIPT = re.compile(r"(?:^|[\s`/])weaksam ([a-z]\w*)")
TARGET = re.compile(r"(?:^|`)make ([a-z][\w-]*)", re.MULTILINE)
TARGETS = re.compile(r"^([\w-]+):", re.MULTILINE)
PATH = re.compile(r"`((?:weaksam_jax|bridge|experiments|tests|docs|\.ci|\.github)/[\w./-]*)`")
# "docs/provenance/mil.md, sections 1, 3 and 6", also across line ends and as a Markdown link.
CITATION = re.compile(
    r"provenance/(\w+)\.md\)?,[\s#]+sections?[\s#]+((?:\d+(?:\.\d+)*(?:,[\s#]+(?:and[\s#]+)?|[\s#]+and[\s#]+)?)+)"
)
EXTERNAL = ("http://", "https://", "mailto:")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def names(pages) -> list[str]:
    return [page.relative_to(ROOT).as_posix() for page in pages]


def anchors(page: Path) -> set[str]:
    """Ids of a page's headings, as Markdown renderers make them; repeated ones get a number."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", read(page))):
        plain = re.sub(r"[^\w\s-]", "", heading.replace("`", "").lower()).strip()
        slug = re.sub(r"[\s]+", "-", plain)
        number = 1
        while (one := slug if number == 1 else f"{slug}-{number - 1}") in found:
            number += 1
        found.add(one)
    return found


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in LINK.findall(FENCE.sub("", read(page))):
        if link.startswith(EXTERNAL):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def has_module(name: str) -> bool:
    """Whether `python -m name` finds a file to run: a module, or a package with `__main__`."""
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def section_numbers(page: Path) -> set[str]:
    """Numbers that headings start with: "2.1" of "### 2.1 WSDDN"."""
    headings = HEADING.findall(FENCE.sub("", read(page)))
    found = (re.match(r"(\d+(?:\.\d+)*)[. ]", heading + " ") for heading in headings)
    return {one.group(1) for one in found if one}


def unresolved(text: str) -> list[str]:
    """Citations of provenance in a text whose page or section does not exist."""
    found = []
    for page, numbers in CITATION.findall(text):
        path = PROVENANCE / f"{page}.md"
        known = section_numbers(path) if path.exists() else set()
        cited = re.findall(r"\d+(?:\.\d+)*", numbers)
        found += [f"{page}.md, section {one}" for one in cited if one not in known]
    return found


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_resolves(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_command_exists(page):
    text = read(page)
    modules = {name.rstrip(".") for name in MODULE.findall(text)}
    # The console script has the same commands as `python -m experiments.…`.
    modules |= {f"experiments.{name}" for name in SCRIPT.findall(text)}
    assert [name for name in sorted(modules) if not has_module(name)] == []
    targets = set(TARGETS.findall(read(ROOT / "Makefile")))
    assert set(TARGET.findall(text)) <= targets


@pytest.mark.parametrize("page", OWN_PATHS, ids=names(OWN_PATHS))
def test_every_path_of_the_repository_exists(page):
    assert [path for path in PATH.findall(read(page)) if not (ROOT / path).exists()] == []


def test_every_citation_of_provenance_resolves():
    files = [path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {}
    for path in (*files, *PAGES):
        if path != Path(__file__) and (missing := unresolved(read(path))):
            found[path.relative_to(ROOT).as_posix()] = missing
    assert found == {}


def test_no_source_cites_notes_outside_the_repository():
    notes = re.compile(r"\b[1-5]0-[a-z]+(?:-[a-z]+)*(?:\.md|\s+§)")
    files = [path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))]
    cited = {
        path.relative_to(ROOT).as_posix(): notes.findall(read(path))
        for path in files
        if path != Path(__file__) and notes.search(read(path))
    }
    assert cited == {}


def test_unresolved_citations_are_found():
    good = "(docs/provenance/mil.md, sections 1, 2.1 and 6). [mil](provenance/mil.md), section 3"
    assert unresolved(good) == []
    bad = "docs/provenance/mil.md, sections 1 and 99; docs/provenance/none.md,\n# section 1"
    assert unresolved(bad) == ["mil.md, section 99", "none.md, section 1"]


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](#one-two) [b](#three) [c](none.md)\n```\n[d](e)\n```\n")
    assert broken_links(page) == ["#three", "none.md"]


def test_the_site_builds_without_warnings(tmp_path):
    needed = ("mkdocs", "material", "mkdocstrings")
    missing = [name for name in needed if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (extra `docs`)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {page.stem for page in DOCS.rglob("*.md")} <= {page.stem for page in pages}
    loads = re.compile(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]*)')
    assert [url for page in pages for url in loads.findall(read(page))] == []
    assert "roi_align" in read(tmp_path / "api" / "ops.html")


def test_readme_fits_a_screen_or_three():
    lines = read(ROOT / "README.md").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 110


def test_the_reference_has_every_module_of_the_package():
    root, shown = ROOT / "weaksam_jax", set(re.findall(r"^::: (\S+)", read_api(), re.MULTILINE))
    modules = {f"weaksam_jax.{path.stem}" for path in root.glob("[!_]*.py")}
    modules |= {f"weaksam_jax.{path.parent.name}" for path in root.glob("*/__init__.py")}
    assert sorted(modules - shown) == []


def read_api() -> str:
    return "\n".join(read(path) for path in sorted((DOCS / "api").glob("*.md")))
