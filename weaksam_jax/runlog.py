"""`log.jsonl`, the one log of a run: a line of JSON for every few steps of every stage."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weaksam_jax.files import write_text

FILE = "log.jsonl"  # its name in the run folder


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line: at least its "stage" and "step"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def forget(path: Path, stage: str, step: int) -> None:
    """Takes a stage's lines after `step`, and a line cut short by a kill, out of the log.

    So that a stage that goes on at a checkpoint does not tell the same steps twice.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry["stage"] != stage or entry["step"] <= step:
            kept.append(line)
    write_text(path, "".join(kept))
