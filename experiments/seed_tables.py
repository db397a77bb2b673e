"""Tables of several methods and seeds: every cell is a training, run once and resumed."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from weaksam_jax.files import read_json, write_json, write_text

Cell = Callable[[str, int, Path], dict]


def run_cells(
    methods: dict[str, Any], seeds: Sequence[int], out: Path, work: Cell, figures: Sequence[str]
) -> list[dict]:
    """One dictionary a cell: method, seed, its settings and what `work(method, seed, folder)` gave.

    methods: name -> settings (a dataclass). A cell whose settings are those of its finished row is
    not run again. Writes OUT/table.json (with command and commit) and OUT/table.md.
    """
    rows = []
    for method, settings in methods.items():
        for seed in seeds:
            folder = out / f"{method.replace(' ', '_')}-{seed}"
            stored = folder / "row.json"
            row, wanted = read_json(stored) if stored.exists() else None, plain(settings)
            if row is None or row["settings"] != wanted:
                print(f"{method}, seed {seed}: training in {folder}", file=sys.stderr)
                found = work(method, seed, folder)
                row = {"method": method, "seed": seed, **found, "settings": wanted}
                write_json(stored, row, indent=1)
            rows.append(row)
    note = {"command": " ".join(sys.argv), "commit": commit(), "rows": rows}
    write_json(out / "table.json", note, indent=1)
    write_text(out / "table.md", markdown(rows, figures) + "\n")
    return rows


def markdown(rows: Sequence[dict], figures: Sequence[str]) -> str:
    """A row a method: mean and deviation of each figure over its seeds, and the last of each."""
    heads = ["method", *figures, f"{figures[-1]} of each seed"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        cells = [spread([row[figure] for row in own]) for figure in figures]
        each = ", ".join(f"{row[figures[-1]]:.1f}" for row in own)
        lines.append(f"| {' | '.join([method, *cells, each])} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean and, of several values, the deviation of the sample."""
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


def verdict(name: str, changed: Sequence[float], before: Sequence[float]) -> str:
    """A sentence on the differences of paired seeds against their noise."""
    differences = np.asarray(changed) - np.asarray(before)
    mean, count = float(differences.mean()), len(differences)
    if count < 2:
        return f"{name}: {mean:+.1f} with one seed, which says nothing about noise"
    error = float(differences.std(ddof=1) / np.sqrt(count))
    word = "within the noise of seeds"
    if abs(mean) > 2 * error:
        word = "helps" if mean > 0 else "harms"
    return f"{name}: {mean:+.1f} ± {error:.1f} (standard error of {count} paired seeds): {word}"


def plain(settings: Any) -> dict:
    """Settings as JSON gives them back."""
    return json.loads(json.dumps(asdict(settings)))


def commit() -> str:
    """Short hash of the code's commit, "unknown" outside a repository."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"
