"""`log.jsonl`, the one log of a run: a line of JSON for every few steps of every stage."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weaksam_jax.errors import BadFile
from weaksam_jax.files import json_lines, write_text

FILE = "log.jsonl"  # its name in the run folder
HINT = "move the file away; the log begins anew then"


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line: at least its "stage" and "step"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def forget(path: Path, stage: str, step: int) -> None:
    """Takes a stage's lines after `step`, and a line cut short by a kill, out of the log.

    So that a stage that goes on at a checkpoint does not tell the same steps twice. Raises
    `BadFile` for another line that is none of a log.
    """
    if not path.exists():
        return
    kept = []
    for line in json_lines(path, "log line", HINT):
        entry = line.value
        if not _is_entry(entry):
            raise BadFile(path, f"line {line.number} is no log line", HINT)
        if entry["stage"] != stage or entry["step"] <= step:
            kept.append(f"{line.text}\n")
    write_text(path, "".join(kept))


def _is_entry(entry: Any) -> bool:
    whole = isinstance(entry, dict) and isinstance(entry.get("stage"), str)
    return whole and type(entry.get("step")) is int
