"""Mutated inputs through the real entry points.

    python -m tests.fuzz --count 2000            a table of what was tried and how it ended
    python -m tests.fuzz --of outputs            stores to pack, lock files, places of outputs
    python -m tests.fuzz --seed 7 --only 123 --keep kept        one mutant again, its files kept

Mutates small valid data sets (VOC, COCO, tags.csv), results, stores, checkpoints, pickles and
settings, and runs the command that reads them in a process of its own. Each must end in 0, with
right values where pycocotools, Pillow or NumPy can tell, or in 2 with one line on stderr: no trace,
nothing that takes over a minute or 4 GB, nothing written outside of the output. A mutant depends on
(seed, number) alone. Exit status 1 when one of them did not.
"""

import argparse
import collections
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.campaign import SETS, work


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    numbers = list(range(options.count)) if options.only is None else [options.only]
    part, parts = options.part
    if options.workers > 1:
        rows = in_processes(sys.argv[1:] if argv is None else argv, options.workers)
    else:
        rows = work(options.seed, numbers[part::parts], options.keep, of=options.of)
    rows.sort(key=lambda row: row["number"])
    print(table(rows))
    faults = [row for row in rows if row["fault"]]
    for row in faults[:50]:
        print(f"{row['number']} {row['target']}: {row['fault']}\n    {row['said']}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=0))
    return int(bool(faults))


def in_processes(argv: list[str], workers: int) -> list[dict]:
    """The rows of this command in so many processes, each with its part of the mutants."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        paths = [Path(scratch) / f"{index}.json" for index in range(workers)]
        running = []
        for index, path in enumerate(paths):
            more = ["--workers", "1", "--part", f"{index}/{workers}", "--json", str(path)]
            command = [sys.executable, "-m", "tests.fuzz", *argv, *more]
            running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        for one in running:
            one.wait()
        return [row for path in paths for row in json.loads(path.read_text())]


def _part(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    return int(index), int(count)


def _options(argv: list[str] | None) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m tests.fuzz", description=__doc__, formatter_class=form
    )
    parser.add_argument("--count", type=int, default=2000, help="mutants [2000]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--of", choices=SETS, default="inputs", help="what is mutated [inputs]")
    parser.add_argument("--only", type=int, help="this mutant alone")
    parser.add_argument("--part", type=_part, default=(0, 1), help="i/n: every n-th, from i on")
    parser.add_argument("--workers", type=int, default=1, help="processes [1]")
    parser.add_argument("--keep", type=Path, help="folder for the files of mutants with a fault")
    parser.add_argument("--json", type=Path, help="where every mutant's ending is written")
    return parser.parse_args(argv)


def table(rows: list[dict]) -> str:
    """Markdown: how many of each target ended how."""
    lines = ["| input | mutants | refused | taken | of these judged right | faults | longest |"]
    lines.append("|---|---|---|---|---|---|---|")
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row["target"]].append(row)
    for name, own in [*sorted(groups.items()), ("all", rows)]:
        counts = (
            sum(row["status"] == 2 and not row["fault"] for row in own),
            sum(row["status"] == 0 and not row["fault"] for row in own),
            sum(bool(row["judged"]) and not row["fault"] for row in own),
            sum(bool(row["fault"]) for row in own),
        )
        longest = max((row["seconds"] for row in own), default=0)
        lines.append(f"| {name} | {len(own)} | {' | '.join(map(str, counts))} | {longest:.1f} s |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
