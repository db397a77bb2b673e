"""Lists the commands of the PyTorch side: from images to proposals, and published weights.

Example: python -m bridge.export --help
"""

import ast
import sys
from pathlib import Path

from weaksam_jax.errors import BadInput


def main(argv: list[str] | None = None) -> None:
    """Prints each command's name and what it does."""
    print(__doc__)
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(getattr(node, "name", None) == "main" for node in tree.body):
            about = ast.get_docstring(tree).splitlines()[0]
            print(f"  python -m bridge.{path.stem:16} {about}")
    arguments = sys.argv[1:] if argv is None else argv
    if arguments not in ([], ["-h"], ["--help"]):
        raise BadInput("python -m bridge", f"has no {arguments[0]}", "give one of those above")


if __name__ == "__main__":
    from weaksam_jax.cli import entry_point

    raise SystemExit(entry_point(main))
