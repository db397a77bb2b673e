"""Side-by-side timings: `python -m experiments.bench [NAME] [--only NAME]`.

Without a NAME the entries below. `mil`: seconds and memory of the whole MIL training step and how
they grow; `growth`: the same of every detector, against proposals, pixels, devices and classes;
`padding`: how many padded sizes recipes have, and how much of them is padding; `gpu`: correctness
and speed of everything on a GPU, in a fixed time; `tpu`: all programs compiled for TPUs, without
one (each has flags of its own, see `gpu --help`).

Each entry times our form and an alternative that does the same work on the same input in the same
run, alternating, and prints the medians and their ratio (alternative / ours; above 1: ours is
faster). Entries that say what they agree on compare the results of both forms. Entries of minutes
(`experiments.bench.cases.SLOW`) run only when `--only` asks for them, each form once.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.bench import cases
from experiments.bench.entry import Entry
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_json
from weaksam_jax.flags import parse
from weaksam_jax.outputs import OutFile
from weaksam_jax.ranges import Count


@dataclass(frozen=True)
class Bench:
    """Times our operations beside an alternative doing the same work in the same run."""

    only: str | None = None
    """Run the entries whose name contains this text."""
    repeats: Count = 5
    """Timed calls of each form, after one warm-up (which compiles); slow entries have one call."""
    cpu: bool = False
    """Count processor time of this process, not the time that passes: for a busy machine."""
    json: OutFile = Path("runs/bench.json")
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
    for call in range(1 + repeats):
        for form, times in zip((ours, other), seconds, strict=True):
            begin = clock()
            result = form()
            if call or not repeats:
                times.append(getattr(result, "seconds", clock() - begin))
            if not call:
                results.append(result)
    return *seconds, results


def run(options: Bench) -> list[dict]:
    """Runs the chosen entries; one dictionary per row."""
    chosen = [name for name in cases.CASES if options.only and options.only in name]
    if not options.only:
        chosen = [name for name in cases.CASES if name not in cases.SLOW]
    if not chosen:
        names = ", ".join(cases.CASES)
        raise BadInput("--only", f"{options.only} names no entry", f"choose from {names}")
    rows = []
    for name in chosen:
        print(f"timing {name} ...", file=sys.stderr, flush=True)
        repeats = 0 if name in cases.SLOW else options.repeats
        rows.append({"name": name, **measure(cases.CASES[name](), repeats, options.cpu)})
    return rows


def measure(entry: Entry, repeats: int, cpu: bool) -> dict:
    """The figures of one entry."""
    clock = time.process_time if cpu else time.perf_counter
    ours, other, results = time_pair(entry.ours, entry.other, repeats, clock=clock)
    agreed = f" ({entry.agree(*results)})" if entry.agree else ""
    ours_ms, other_ms = (1e3 * statistics.median(times) for times in (ours, other))
    return {
        "clock": "cpu" if cpu else "wall",
        "what": entry.work + agreed,
        "ours_ms": round(ours_ms, 3),
        "other": entry.other_name,
        "other_ms": round(other_ms, 3),
        "ratio": round(other_ms / ours_ms, 3),
        "ours_min_ms": round(1e3 * min(ours), 3),
        "other_min_ms": round(1e3 * min(other), 3),
    }


def table(rows: list[dict]) -> str:
    """The rows as a text table."""
    head = f"{'entry':22} {'ours ms':>10} {'other ms':>10} {'ratio':>7}  alternative; work"
    lines = [
        f"{r['name']:22} {r['ours_ms']:10.2f} {r['other_ms']:10.2f} {r['ratio']:7.2f}  "
        f"{r['other']}; {r['what']}"
        for r in rows
    ]
    return "\n".join([head, *lines])


def main(argv: Sequence[str]) -> None:
    options = parse(Bench, argv, __doc__, name="bench")
    rows = run(options)
    write_json(options.json, rows, indent=1)
    print(table(rows))
    print(f"written to {options.json}", file=sys.stderr)
