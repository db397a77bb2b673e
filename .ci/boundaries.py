"""The import boundaries, checked: `python .ci/boundaries.py [ROOT]`.

Static: every import statement (also inside functions, and `import_module("...")`) of `weaksam_jax`
and `bridge` is held against `BOUNDARIES`. Run-time: a fresh interpreter imports every module of one
package and must not have loaded the other framework. Exit status 1 with one line per violation.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TORCH = ("torch", "torchvision", "timm", "segment_anything")
JAX = ("jax", "jaxlib", "flax", "optax", "orbax", "grain")
# Packages and modules of weaksam_jax that import jax.
COMPILED = tuple(
    f"weaksam_jax.{name}"
    for name in ("engine", "backbones", "detectors", "ops", "losses", "photos", "data.batches")
)
# What both sides share. All other modules of weaksam_jax import neither side of their own, but
# what they need (matplotlib, jinja2, pycocotools) is nothing that bridge needs.
NEUTRAL = tuple(
    f"weaksam_jax/{name}.py"
    for name in (
        *("__init__", "boxes", "cli", "errors", "files", "flags", "interrupts", "locks"),
        *("run_folder", "runlog", "settings", "supervision", "text"),
    )
)


@dataclass(frozen=True)
class Boundary:
    """Files under `inside` (except `exceptions`) may not import any module of `forbidden`.

    Paths are relative to the repository; a folder ends in a slash. A module stands for itself and
    everything below it, unless `allowed` names a part of it.
    """

    inside: tuple[str, ...]
    forbidden: tuple[str, ...]
    why: str
    exceptions: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()


BOUNDARIES = (
    Boundary(("weaksam_jax/",), (*TORCH, "bridge"), "weaksam_jax never imports torch or bridge"),
    Boundary(
        ("bridge/",), (*JAX, *COMPILED), "bridge never imports jax, itself or through weaksam_jax"
    ),
    Boundary(
        ("weaksam_jax/", "bridge/"), ("experiments",), "experiments is the top: nobody imports it"
    ),
    Boundary(
        (*NEUTRAL, "weaksam_jax/data/"),
        (*JAX, *TORCH, *COMPILED),
        "both sides share this module, so it imports neither jax nor torch",
        exceptions=("weaksam_jax/data/batches.py",),
    ),
    Boundary(
        ("weaksam_jax/data/batches.py",),
        (*(name for name in JAX if name != "grain"), *COMPILED),
        "data.batches may import grain and nothing else of the jax side",
    ),
    Boundary(
        ("weaksam_jax/",),
        ("flax",),
        "flax lives in weaksam_jax/backbones and weaksam_jax/detectors",
        exceptions=("weaksam_jax/backbones/", "weaksam_jax/detectors/"),
    ),
    Boundary(
        (
            "weaksam_jax/engine/",
            "weaksam_jax/ops/",
            "weaksam_jax/losses/",
            "weaksam_jax/backbones/",
        ),
        ("weaksam_jax.detectors",),
        "detectors are built on it: hand over what it needs as a callable",
    ),
)


def violations(root: Path) -> list[str]:
    """Every forbidden import under `root`, as "path:line: imports NAME; why"."""
    found = []
    for package in ("weaksam_jax", "bridge"):
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            own = [
                b for b in BOUNDARIES if _covers(b.inside, name) and not _covers(b.exceptions, name)
            ]
            for line, module in imports(path, name):
                found += [
                    f"{name}:{line}: imports {module}; {one.why}"
                    for one in own
                    if _below(one.forbidden, module) and not _below(one.allowed, module)
                ]
    return found


def loaded_after_import(root: Path, package: str) -> set[str]:
    """Top-level modules loaded after importing all modules of `package` in a fresh interpreter.

    Raises `RuntimeError` with the interpreter's stderr when a module cannot be imported.
    """
    files = sorted((root / package).rglob("*.py"))
    names = [".".join(file.relative_to(root).with_suffix("").parts) for file in files]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return set(done.stdout.split())


def _covers(places: tuple[str, ...], name: str) -> bool:
    return any(name == p or (p.endswith("/") and name.startswith(p)) for p in places)


def _below(modules: tuple[str, ...], module: str) -> bool:
    return any(module == m or module.startswith(m + ".") for m in modules)


def imports(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every imported module or member; relative imports made absolute."""
    package = name.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), name)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    found = violations(root)
    for package, forbidden in (("weaksam_jax", TORCH), ("bridge", JAX)):
        loaded = loaded_after_import(root, package) & set(forbidden)
        found += [f"{package}: importing its modules loads {name}" for name in sorted(loaded)]
    print("\n".join(found) or "import boundaries: kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
