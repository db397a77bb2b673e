"""The shape of the code: no import cycles, short files, short functions, few commands on top."""

import ast
import graphlib
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("weaksam_jax", "bridge", "experiments")
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def sources(root: Path, *folders: str) -> list[Path]:
    """The Python files of the folders; there must be some."""
    found = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    assert found, f"{folders} have no Python files"
    return found


def module_name(root: Path, path: Path) -> str:
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    return name.removesuffix(".__init__")


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: everything but the bodies of its functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, FUNCTION | ast.Lambda):
            yield node
            yield from statements(node)


def imported(root: Path, path: Path, modules: set[str]) -> set[str]:
    """Modules of ours that a module imports when it is imported itself."""
    package = list(path.relative_to(root).parent.parts)
    found = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            members = {f"{base}.{alias.name}" for alias in node.names}
            found |= {member if member in modules else base for member in members}
    return (found & modules) - {module_name(root, path)}


def cycle(root: Path, *packages: str) -> list[str] | None:
    """The modules of an import cycle, from one to itself; None without a cycle."""
    paths = {module_name(root, path): path for path in sources(root, *packages)}
    graph = {name: imported(root, path, set(paths)) for name, path in paths.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def body_lines(function: FUNCTION) -> int:
    """Lines of a function's body, without its docstring (0: it has nothing else)."""
    body = function.body[ast.get_docstring(function) is not None :]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def function_lengths(path: Path) -> list[int]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [body_lines(node) for node in ast.walk(tree) if isinstance(node, FUNCTION)]


def test_no_module_imports_itself_through_others():
    assert cycle(ROOT, *PACKAGES) is None


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"a": "import p.b\n", "b": "import p.a\n"}, {"p.a", "p.b"}),
        ({"a": "from p import b\n", "b": "from p.c import x\n", "c": "import p.a\n"}, None),
        ({"a": "from .b import x\n", "b": "if True:\n    from . import a\n"}, {"p.a", "p.b"}),
        ({"__init__": "from p.a import x\n", "a": "from p import y\n"}, {"p", "p.a"}),
        ({"__init__": "", "a": "import p.b\n", "b": "def f():\n    import p.a\n"}, set()),
    ],
)
def test_cycles_are_found(tmp_path, files, found):
    (tmp_path / "p").mkdir()
    for name, source in files.items():
        (tmp_path / "p" / f"{name}.py").write_text(source)
    found = {"p.a", "p.b", "p.c"} if found is None else found
    assert set(cycle(tmp_path, "p") or ()) == found


def test_no_file_has_more_than_400_lines():
    files = sources(ROOT, *PACKAGES, "examples", "tests", ".ci")
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {path.relative_to(ROOT).as_posix(): n for path, n in lengths.items() if n > 400} == {}


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_the_median_function_has_at_most_10_lines(folder):
    lengths = [n for path in sources(ROOT, folder) for n in function_lengths(path)]
    assert len(lengths) > 100
    assert statistics.median(lengths) <= 10


def test_lines_of_a_function_are_those_of_its_body(tmp_path):
    path = tmp_path / "a.py"
    path.write_text('def f(\n    x,\n):\n    """Two\n    lines."""\n    y = x\n\n    return y\n')
    assert function_lengths(path) == [3]


def test_at_most_12_files_stand_directly_in_experiments():
    assert 2 <= len(list((ROOT / "experiments").glob("*.py"))) <= 12
