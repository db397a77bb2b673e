"""The commands by name: `weaksam NAME` is `python -m experiments.NAME` (or `python -m bridge...`).

A command is a module with `main(argv)` and an `if __name__ == "__main__"` block; the first sentence
of its text is what the list says of it. So a new command is one file.
"""

import ast
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from weaksam_jax.cli import entry_point
from weaksam_jax.errors import BadInput, did_you_mean
from weaksam_jax.interrupts import on_the_spot

# Heading, package, and what the names of its commands begin with.
GROUPS = (
    ("Commands", "experiments", ""),
    ("Tables and figures of the paper", "experiments.paper", "paper."),
    ("Timings", "experiments.bench", "bench."),
    ("Frozen networks (PyTorch)", "bridge", "bridge."),
)


def run(name: str, argv: Sequence[str] | None = None) -> int:
    """Runs a command to its exit status. What it compiles is kept on disk (`engine`)."""

    def main(argv: Sequence[str] | None) -> None:
        with on_the_spot():
            module = importlib.import_module(module_of(name))
            if "jax" in sys.modules and module.__name__.startswith("experiments."):
                from weaksam_jax.engine.compilation_cache import enable_compilation_cache

                enable_compilation_cache()
        module.main(argv)

    return entry_point(main, argv)


def module_of(name: str) -> str:
    """The module of a command; `BadInput` with the nearest name when there is none."""
    found = {command: module for command, module, _ in commands()}
    if name not in found:
        hint = did_you_mean(name, found, "weaksam --help lists all commands")
        raise BadInput(name, "is no command", hint)
    return found[name]


def commands() -> list[tuple[str, str, Path]]:
    """(name, module, its file) of every command, in the order of `GROUPS`."""
    return [one for _, package, prefix in GROUPS for one in _in_package(package, prefix)]


def _in_package(package: str, prefix: str) -> Iterator[tuple[str, str, Path]]:
    spec = importlib.util.find_spec(package)
    for one in pkgutil.iter_modules(spec.submodule_search_locations):
        path = Path(one.module_finder.path) / f"{one.name}.py"
        source = "" if one.ispkg else path.read_text(encoding="utf-8")
        if 'if __name__ == "__main__":' not in source or "\ndef main(" not in source:
            continue  # a module, or a program that a command starts
        if one.name != "__main__":
            yield f"{prefix}{one.name}", f"{package}.{one.name}", path
        elif prefix:
            yield prefix.rstrip("."), f"{package}.__main__", path


def listing() -> str:
    """The text of `weaksam --help`."""
    lines = ["usage: weaksam COMMAND [FLAGS]; weaksam COMMAND --help explains one"]
    for heading, package, prefix in GROUPS:
        rows = [(name, summary(path)) for name, _, path in _in_package(package, prefix)]
        width = max(len(name) for name, _ in rows)
        lines += ["", f"{heading}:", *(f"  {name:{width}}  {text}" for name, text in rows)]
    return "\n".join(lines)


def summary(path: Path) -> str:
    """The first sentence of a module's text, without importing it."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(doc.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".")
