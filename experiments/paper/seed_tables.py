"""Tables of several methods and seeds: every cell is a training, run once and resumed."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from experiments.paper.verdicts import spread
from experiments.pipeline import work_folder
from experiments.pipeline.run import Run, open_run
from experiments.pipeline.runner import say
from weaksam_jax.data.datasets import dataset_fingerprint
from weaksam_jax.errors import BadFile, BadInput
from weaksam_jax.files import fingerprint, read_json, write_json, write_text
from weaksam_jax.locks import locked
from weaksam_jax.settings import to_plain

Cell = Callable[[str, int, Path], dict]


@dataclass(frozen=True)
class SeedRuns:
    """Finished runs on one data set, for several seeds: seed i takes the i-th run (the first again
    when there are fewer)."""

    runs: tuple[Run, ...]
    seeds: tuple[int, ...]

    @property
    def first(self) -> Run:
        return self.runs[0]

    def of(self, seed: int) -> Run:
        """The run that this seed takes."""
        return self.runs[self.seeds.index(seed) % len(self.runs)]

    def images(self) -> list[str]:
        """Fingerprints of the images and tags of both splits."""
        data = self.first.data
        return [dataset_fingerprint(data.path, name) for name in data.names.values()]


def open_runs(
    roots: Sequence[Path],
    seeds: Sequence[int] | None,
    data: str | None,
    *,
    allowed: tuple[str, ...] = (),
) -> SeedRuns:
    """The runs with the data set of the first; seeds None: 0, 1, ... one for each; allowed: what
    else than tags weights may have seen that a detector starts from.

    Raises `BadInput` for no run, no seed, a seed named twice, and a data set without boxes.
    """
    if not roots:
        raise BadInput("--runs", "is missing", "name at least one finished run")
    seeds = tuple(range(len(roots)) if seeds is None else seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        problem = "names a seed twice" if seeds else "is empty"
        raise BadInput("--seeds", problem, "a verdict needs different trainings: give 0 1 2, say")
    first = open_run(roots[0], data)
    others = (open_run(root, str(first.data.path)) for root in roots[1:])
    first.data.truth("test")
    return SeedRuns(tuple(permitting(one, allowed) for one in (first, *others)), seeds)


def permitting(run: Run, allowed: tuple[str, ...]) -> Run:
    """The run with that value of --allow-supervision."""
    return replace(run, options=replace(run.options, allow_supervision=allowed))


@dataclass(frozen=True)
class Table:
    """A table of methods and seeds: OUT/<name>.json and .md.

    figures: names of what is shown, the last with each seed's own. methods: name -> settings (a
    dataclass), in the order of the rows.
    """

    name: str
    figures: tuple[str, ...]
    methods: Mapping[str, Any]
    seeds: tuple[int, ...]
    out: Path


def run_cells(
    table: Table, work: Cell, inputs: Callable[[int], Any] = lambda seed: None
) -> list[dict]:
    """One dictionary per cell: method, seed, what `work(method, seed, folder)` gave, seconds, the
    commit of the code, its settings and inputs.

    inputs(seed): what else decides a cell, as JSON (fingerprints of the files it reads). A cell
    that has finished in `out` with the same settings, seed and inputs is not run again, under
    whatever method's name; one that was stopped finds its folder as it left it, but empty when they
    have changed. Writes the table, its JSON with command and commit.
    """
    files = [f"{table.name}.{suffix}" for suffix in ("json", "md", "png")]
    with locked(table.out, "paper", files):
        return _run_cells(table, work, inputs)


def _run_cells(table: Table, work: Cell, inputs: Callable[[int], Any]) -> list[dict]:
    rows, cells = [], [(method, seed) for method in table.methods for seed in table.seeds]
    for number, (method, seed) in enumerate(cells, 1):
        job = {"seed": seed, "settings": to_plain(table.methods[method]), "inputs": inputs(seed)}
        row = _finished(table.out, job, table.figures)
        if row is None:
            say(f"cell {number} of {len(cells)}: {method}, seed {seed}")
            row = _run_cell(method, job, table.out, work=work)
            last = table.figures[-1]
            say(f"  {last} {row[last]:.1f} after {row['seconds']:.0f} s")
        rows.append(row | {"method": method})
    write_json(table.out / f"{table.name}.json", {**provenance(), "rows": rows}, indent=1)
    write_text(table.out / f"{table.name}.md", markdown(rows, table.figures) + "\n")
    return rows


def _run_cell(method: str, job: dict, out: Path, work: Cell) -> dict:
    """The row of a cell that has not finished yet."""
    seed, folder = job["seed"], out / f"{method.replace(' ', '_')}-{job['seed']}"
    say(f"  training in {folder}")
    open_folder(folder, job)
    begin = time.monotonic()
    row = {"method": method, "seed": seed, **work(method, seed, folder)}
    # Of a cell that was stopped, only those since it went on.
    row["seconds"] = round(time.monotonic() - begin, 1)
    row |= {"commit": commit(), **job}
    write_json(folder / "row.json", row, indent=1)
    return row


def _finished(out: Path, job: dict, figures: Sequence[str]) -> dict | None:
    """The row of a cell in `out` that did this job; `BadFile` when it lacks a figure."""
    for path in sorted(out.glob("*/row.json")):
        row = read_json(path)
        if isinstance(row, dict) and job.items() <= row.items():
            for name in (*figures, "seconds"):
                if type(row.get(name)) not in (int, float) or not isfinite(row[name]):
                    hint = "move its folder elsewhere: the cell is run again then"
                    raise BadFile(path, f"{name} is no number", hint)
            return row
    return None


def open_folder(folder: Path, job: Any) -> None:
    """Empties `folder` unless this job (JSON values) was begun in it; one that no job was begun in
    is refused (`experiments.pipeline.work_folder`).

    So a training goes on from its own checkpoints, and never from those of other settings.
    """
    work_folder.open_folder(folder, fingerprint(job))


def markdown(rows: Sequence[dict], figures: Sequence[str]) -> str:
    """A row per method: mean and deviation of each figure over its seeds, the last of each, and the
    mean minutes per cell and the code's commit (dashes for tables that were made without)."""
    heads = ["method", *figures, f"{figures[-1]} of each seed", "minutes per cell", "commit"]
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


def provenance() -> dict[str, str]:
    """What a file of figures says of how it was made: command and commit."""
    return {"command": " ".join(sys.argv), "commit": commit()}


def commit() -> str:
    """Short hash of the code's commit, "-dirty" when files were changed since, "unknown" outside a
    repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"
