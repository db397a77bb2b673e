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


def parameters(node: ast.FunctionDef | ast.ClassDef, method: bool) -> tuple[str, ...]:
    """What a function or the making of a dataclass takes by position."""
    if isinstance(node, ast.ClassDef):
        inits = [one for one in node.body if getattr(one, "name", "") == "__init__"]
        if not inits:
            return tuple(one.target.id for one in node.body if isinstance(one, ast.AnnAssign))
        node, method = inits[0], True
    names = tuple(one.arg for one in node.args.posonlyargs + node.args.args)
    bound = method and "staticmethod" not in map(ast.unparse, node.decorator_list)
    return names[1:] if bound else names


def by_position(paths: list[Path]) -> list[str]:
    """Calls, of functions and dataclasses of these files, with more than three arguments by
    position; a name that several functions have counts when one of them takes so many, `cls` as
    its class, a starred argument as one and more, and what a call gives when it is called."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    takes: dict[str, int] = {}
    for tree in trees.values():
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        methods = {id(node) for one in classes for node in one.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                count = len(parameters(node, id(node) in methods))
                takes[node.name] = max(count, takes.get(node.name, 0))
    found = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and too_many(node, takes):
                found.append(f"{path.name}:{node.lineno} {ast.unparse(node.func)[:40]}")
    return found


MAPS = ("jax.vmap", "jax.jit", "jax.grad", "jax.value_and_grad")


def too_many(call: ast.Call, takes: dict[str, int]) -> bool:
    name, count = ast.unparse(call.func).split(".")[-1], len(call.args)
    starred = any(isinstance(one, ast.Starred) for one in call.args)
    if isinstance(call.func, ast.Call):  # what maps over arguments has them by position alone
        return count > 3 and ast.unparse(call.func.func) not in MAPS
    if name == "cls":
        return count > 3
    return count + starred > 3 and takes.get(name, 0) > 3 and (starred or count <= takes[name])


def test_nothing_is_handed_on_by_position_beyond_three_arguments():
    # The corners and colours of the embedded set's drawings are read best in rows.
    paths = [
        path for path in sources(ROOT, *PACKAGES, "examples") if path.parent.name != "mini_set"
    ]
    assert by_position(paths) == []


@pytest.mark.parametrize(
    ("call", "count"),
    [
        ("f(1, 2, 3, d=4)", 0),
        ("f(1, 2, 3, 4)", 1),
        ("C(1, 2, 3, 4)", 1),
        ("x.m(1, 2, 3, 4)", 1),
        ("cls(1, 2, 3, 4)", 1),
        ("f(*some)", 0),
        ("f(1, 2, *some)", 1),
        ("f()(1, 2, 3, 4)", 1),
    ],
)
def test_calls_by_position_are_found(tmp_path, call, count):
    path = tmp_path / "a.py"
    fields = "".join(f"    {name}: int\n" for name in "abcd")
    classes = f"class C:\n{fields}    def m(self, a, b, c, d): ...\n"
    path.write_text(f"def f(a, b, c, d): ...\n{classes}{call}\n")
    assert len(by_position([path])) == count
