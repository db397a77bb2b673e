"""Side-by-side timings: `python -m experiments.bench [--only NAME]`.

Each entry times our form and an alternative that does the same work on the same input in the same
run, alternating, and prints the medians and their ratio (alternative / ours; above 1: ours is
faster). Entries that say what they agree on compare the results of both forms. Entries of minutes
(`bench_cases.SLOW`) run only when `--only` asks for them, each form once.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments.bench import cases as bench_cases
from weaksam_jax.cli import entry_point
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_json


@dataclass(frozen=True)
class Bench:
    """Times our operations beside an alternative doing the same work in the same run."""

    only: str | None = None
    """Run the entries whose name contains this text."""
    repeats: int = 5
    """Timed calls of each form, after one warm-up (which compiles); slow entries have one call."""
    cpu: bool = False
    """Count processor time of this process, not the time that passes: for a busy machine."""
    json: Path = Path("runs/bench.json")
    """Where the table is written as JSON."""


def time_pair(
    ours: Callable,
    other: Callable,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], list[float], list[Any]]:
    """Seconds of each call of both forms, alternating so that both see the same machine.

    The first call of each is not counted, except when repeats is 0: then it is all there is. A
    result that has timed itself (`seconds`) is believed. Also returns the results of the first
    calls.
    """
    seconds, results = ([], []), []
    for turn in range(1 + repeats):
        for form, times in zip((ours, other), seconds, strict=True):
            begin = clock()
            result = form()
            if turn or not repeats:
                times.append(getattr(result, "seconds", clock() - begin))
            if not turn:
                results.append(result)
    return *seconds, results


def run(options: Bench) -> list[dict]:
    """Runs the chosen entries; one dictionary a row."""
    rows, clock = [], time.process_time if options.cpu else time.perf_counter
    for name, case in bench_cases.CASES.items():
        slow = name in bench_cases.SLOW
        if options.only not in name if options.only else slow:
            continue
        print(f"timing {name} ...", file=sys.stderr, flush=True)
        what, ours, other_name, other, *agreement = case()
        repeats = 0 if slow else options.repeats
        ours_s, other_s, results = time_pair(ours, other, repeats, clock)
        for compare in agreement:
            what += f" ({compare(*results)})"
        ours_ms, other_ms = (1e3 * statistics.median(times) for times in (ours_s, other_s))
        rows.append(
            {
                "name": name,
                "clock": "cpu" if options.cpu else "wall",
                "what": what,
                "ours_ms": round(ours_ms, 3),
                "other": other_name,
                "other_ms": round(other_ms, 3),
                "ratio": round(other_ms / ours_ms, 3),
                "ours_min_ms": round(1e3 * min(ours_s), 3),
                "other_min_ms": round(1e3 * min(other_s), 3),
            }
        )
    if not rows:
        names = ", ".join(bench_cases.CASES)
        raise BadInput("--only", f"{options.only} names no entry", f"choose from {names}")
    return rows


def table(rows: list[dict]) -> str:
    """The rows as a text table."""
    head = f"{'entry':22} {'ours ms':>10} {'other ms':>10} {'ratio':>7}  alternative; work"
    lines = [
        f"{r['name']:22} {r['ours_ms']:10.2f} {r['other_ms']:10.2f} {r['ratio']:7.2f}  "
        f"{r['other']}; {r['what']}"
        for r in rows
    ]
    return "\n".join([head, *lines])


def main(argv: list[str] | None = None) -> None:
    options = tyro.cli(Bench, args=argv, description=__doc__, prog="python -m experiments.bench")
    rows = run(options)
    write_json(options.json, rows, indent=1)
    print(table(rows))
    print(f"written to {options.json}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(entry_point(main))
