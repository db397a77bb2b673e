"""`weaksam COMMAND`, the same as `python -m experiments.COMMAND`; `weaksam` lists the commands."""

import sys

from experiments.pipeline.commands import listing, run


def main() -> int:
    """The console script; returns the exit status."""
    name, *argv = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(listing())
        return 0
    sys.argv = [f"weaksam {name}", *argv]
    return run(name, argv)


if __name__ == "__main__":
    sys.exit(main())
