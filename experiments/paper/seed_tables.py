"""Tables of several methods and seeds: every cell is a training, run once and resumed."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.pipeline.runner import say
from weaksam_jax.files import fingerprint, read_json, write_json, write_text

Cell = Callable[[str, int, Path], dict]


def run_cells(
    methods: dict[str, Any],
    seeds: Sequence[int],
    out: Path,
    work: Cell,
    figures: Sequence[str],
    inputs: Callable[[int], Any] = lambda seed: None,
    name: str = "table",
) -> list[dict]:
    """One dictionary a cell: method, seed, what `work(method, seed, folder)` gave, seconds, the
    commit of the code, its settings and inputs.

    methods: name -> settings (a dataclass). inputs(seed): what else decides a cell, as JSON
    (fingerprints of the files it reads). A cell that has finished in `out` with the same settings,
    seed and inputs is not run again, under whatever method's name; one that was stopped finds its
    folder as it left it, but empty when they have changed. Writes OUT/<name>.json (with command and
    commit) and OUT/<name>.md.
    """
    rows, cells = [], [(method, seed) for method in methods for seed in seeds]
    for number, (method, seed) in enumerate(cells, 1):
        folder = out / f"{method.replace(' ', '_')}-{seed}"
        wanted, given = plain(methods[method]), inputs(seed)
        job = {"seed": seed, "settings": wanted, "inputs": given}
        if (row := _finished(out, job)) is None:
            say(f"cell {number} of {len(cells)}: {method}, seed {seed}: training in {folder}")
            open_folder(folder, job)
            begin = time.monotonic()
            found = work(method, seed, folder)
            row = {"method": method, "seed": seed, **found}
            # Of a cell that was stopped, only those since it went on.
            row["seconds"] = round(time.monotonic() - begin, 1)
            row |= {"commit": commit(), **job}
            write_json(folder / "row.json", row, indent=1)
            say(f"  {figures[-1]} {row[figures[-1]]:.1f} after {row['seconds']:.0f} s")
        rows.append(row | {"method": method})
    note = {"command": " ".join(sys.argv), "commit": commit(), "rows": rows}
    write_json(out / f"{name}.json", note, indent=1)
    write_text(out / f"{name}.md", markdown(rows, figures) + "\n")
    return rows


def _finished(out: Path, job: dict) -> dict | None:
    """The row of a cell in `out` that did this job."""
    rows = map(read_json, sorted(out.glob("*/row.json")))
    return next((row for row in rows if job.items() <= row.items()), None)


def open_folder(folder: Path, job: Any) -> None:
    """Empties `folder` unless this job (anything JSON-able) was begun in it.

    So a training goes on from its own checkpoints, and never from those of other settings.
    """
    key, started = fingerprint(job), folder / "started"
    if not started.exists() or started.read_text() != key:
        shutil.rmtree(folder, ignore_errors=True)
        write_text(started, key)


def markdown(rows: Sequence[dict], figures: Sequence[str]) -> str:
    """A row a method: mean and deviation of each figure over its seeds, the last of each, and the
    mean minutes of a cell and the code's commit (dashes for tables that were made without)."""
    heads = ["method", *figures, f"{figures[-1]} of each seed", "minutes a cell", "commit"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        cells = [spread([row[figure] for row in own]) for figure in figures]
        each = ", ".join(f"{row[figures[-1]]:.1f}" for row in own)
        times = [row["seconds"] / 60 for row in own if "seconds" in row]
        minutes = f"{np.mean(times):.1f}" if times else "–"
        commits = ", ".join(dict.fromkeys(row["commit"] for row in own if "commit" in row)) or "–"
        lines.append(f"| {' | '.join([method, *cells, each, minutes, commits])} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean and, of several values, the deviation of the sample."""
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


def verdict(name: str, changed: Sequence[float], before: Sequence[float]) -> str:
    """A sentence on the differences of paired seeds: more than noise when the 95 % interval of
    their mean (Student's t) leaves 0 out."""
    differences = np.asarray(changed) - np.asarray(before)
    mean, count = float(differences.mean()), len(differences)
    if count < 2:
        return f"{name}: {mean:+.1f} with one seed, which says nothing about noise"
    half = float(stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count))
    word = "within the noise of seeds"
    if abs(mean) > half:
        word = "helps" if mean > 0 else "harms"
    pooled = _pooled([changed, before])
    return (
        f"{name}: {mean:+.1f}, 95 % interval {mean - half:+.1f} to {mean + half:+.1f} "
        f"({count} paired seeds; deviation of seeds {pooled:.1f}): {word}"
    )


def spread_verdict(name: str, values: Mapping[str, Sequence[float]]) -> str:
    """A sentence on the best and the worst of several methods, picked after the fact, by Tukey's
    range test, which allows for the picking. values: method -> figures, as many seeds each."""
    means = {method: float(np.mean(own)) for method, own in values.items()}
    best, worst = max(means, key=means.get), min(means, key=means.get)
    text = f"{name}: best {best} ({means[best]:.1f}), worst {worst} ({means[worst]:.1f})"
    count, methods = len(values[best]), len(values)
    if count < 2:
        return f"{text} with one seed, which says nothing about noise"
    noise = _pooled(list(values.values())) / np.sqrt(count)
    width = means[best] - means[worst]
    p = 1.0 if width == 0 else 0.0
    if noise > 0:
        p = float(stats.studentized_range.sf(width / noise, methods, methods * (count - 1)))
    word = "more than" if p < 0.05 else "within"
    return f"{text}, {word} the noise of {count} seeds (Tukey p = {p:.2f})"


def _pooled(values: Sequence[Sequence[float]]) -> float:
    """The deviation of seeds within a method."""
    return float(np.sqrt(np.mean([np.var(own, ddof=1) for own in values])))


def plain(settings: Any) -> dict:
    """Settings as JSON gives them back."""
    return json.loads(json.dumps(asdict(settings)))


def commit() -> str:
    """Short hash of the code's commit, "-dirty" when files were changed since, "unknown" outside a
    repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"
