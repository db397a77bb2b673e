"""The supervision ledger of a run: every file of weights that it used, and what that had seen.

Each stage reports its rows, by their use, under `supervision` in metrics.json. A detector that
would start from weights that saw boxes or masks, or do not say what they saw, needs permission
(`--allow-supervision`; `weaksam_jax.supervision`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.clues.lite_cam import LiteConfig
from bridge.clues.networks import clue_supervision
from bridge.clues.weaktr_recipe import WeakTrRecipe
from bridge.clues.weaktr_start import DEIT
from bridge.sam.networks import sam_supervision
from bridge.weights.lite0 import SEEN as LITE0
from experiments.pipeline.detectors import RetrainConfig, start_file
from experiments.pipeline.run import Run
from weaksam_jax.data.store import read_manifest
from weaksam_jax.engine.weights import Weights
from weaksam_jax.supervision import (
    Supervision,
    check_allowed,
    ledger_row,
    read_stated,
    saw,
    stated,
    trained,
)

Rows = dict[str, dict[str, dict[str, str]]]
_ROW = ("file", "supervision", "source")


def _rows(**rows: dict[str, str]) -> Rows:
    """What a stage gives to metrics.json; nothing without rows."""
    return {"supervision": rows} if rows else {}


def start(run: Run, stage: str, weights: Weights | None) -> Rows:
    """The row of what a stage's detector starts from."""
    if weights is None:
        return {}
    row = _started(run, f"stage {stage}", weights.path, seen=stated(weights.metadata, weights.path))
    return _rows(**{f"{stage}_start": row})


def retrained_from(run: Run, config: RetrainConfig) -> dict[str, str] | None:
    """The row of what a table's or a figure's own retraining in `run` started from; None for fresh
    weights. Raises `BadInput` when that is not allowed (any more)."""
    path = start_file(run.folder, config)
    return None if path is None else _started(run, "retraining", path, seen=read_stated(path))


def _started(run: Run, what: str, path: Path, *, seen: Supervision) -> dict[str, str]:
    permitted = check_allowed(path, seen, run.options.allow_supervision, what=what)
    return ledger_row(_shown(run, path), seen, permitted)


def of_detector(run: Run, stage: str) -> dict[str, str]:
    """The row of a detector that the run has trained."""
    path = run.folder.weights(stage)
    return ledger_row(_shown(run, path), read_stated(path))


def of_training(run: Run, weights: Weights | None) -> Supervision:
    """What a detector has seen that the run trained from `weights`: tags, whatever boxes were made
    of them."""
    train = run.data.splits["train"]
    before = None if weights is None else stated(weights.metadata, weights.path)
    return trained(["tags"], f"tags of {train.dataset} {train.split}", before)


def clues(run: Run) -> Rows:
    """The clue network, and what it was trained from."""
    recipe = run.config.clue_recipe()
    if isinstance(recipe, Path):
        return _rows(clues=ledger_row(str(recipe), clue_supervision(recipe)))
    name = "lite_cam" if isinstance(recipe, LiteConfig) else "weaktr"
    path = run.folder.clue_network(name)
    rows = {"clues": ledger_row(_shown(run, path), clue_supervision(path))}
    if isinstance(recipe, LiteConfig):
        rows["clues_start"] = ledger_row("installed package", LITE0)
    if isinstance(recipe, WeakTrRecipe) and recipe.init is not None:
        rows["clues_start"] = ledger_row(str(recipe.init), DEIT)
    return _rows(**rows)


def proposals(run: Run, source: str) -> Rows:
    """SAM, or what a store made elsewhere says of its networks."""
    if not run.exports:
        return _rows(**_of_store(run))
    return sam(run) if source == "sam" else {}


def sam(run: Run) -> Rows:
    """The run's SAM."""
    return _rows(sam=ledger_row(str(run.config.sam), sam_supervision(run.config.sam)))


def _of_store(run: Run) -> dict[str, dict[str, str]]:
    manifest = read_manifest(run.proposals, run.data.names["train"]) or {}
    said = manifest.get("supervision")
    named = said if isinstance(said, Mapping) else {}
    rows = {name: {key: row[key] for key in _ROW} for name, row in named.items() if is_row(row)}
    if rows:
        return {name: rows[name] for name in ("clues", "sam") if name in rows}
    seen = saw(["unknown"], "a store that was made elsewhere and does not say")
    return {"proposals": ledger_row(str(run.proposals), seen)}


def is_row(row: Any) -> bool:
    """Whether a value that was read is a row of a ledger."""
    return isinstance(row, Mapping) and all(isinstance(row.get(key), str) for key in _ROW)


def _shown(run: Run, path: Path) -> str:
    """A path as seen from the run's folder, where it lies in it."""
    inside = path.is_relative_to(run.folder.root)
    return (path.relative_to(run.folder.root) if inside else path).as_posix()
