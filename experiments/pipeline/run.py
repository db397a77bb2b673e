"""Run directories of `experiments.voc07` and `experiments.custom`, opened for what comes after."""

from dataclasses import asdict
from pathlib import Path

from experiments.pipeline.config import RENAMED, RoadSettings, restore
from experiments.pipeline.options import RoadOptions
from experiments.pipeline.stages import Journey
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_json


def open_run(run: Path, data: str | None = None) -> Journey:
    """A run with its settings and splits.

    data: the data set, where it is not at the place that the run knows ("mini": the set that the
    run wrote itself, which is found without it when the run directory was moved). Raises `BadInput`
    when settings.json has names that this version does not know: what they meant would be lost.
    """
    path = run / "settings.json"
    stored = read_json(path)
    try:
        values, chosen = stored["settings"], data or stored["data"]
    except (KeyError, TypeError) as error:
        raise BadInput(path, f"has no {error}", "name a run directory of the road") from error
    settings = restore(RoadSettings, values)
    if lost := _unknown(values, asdict(settings)):
        problem = f"is of another version (unknown: {', '.join(lost)})"
        raise BadInput(path, problem, "run the road's command again with the same --out")
    moved = data is None and not chosen.startswith("tfds:") and not Path(chosen).exists()
    if moved and (run / "data" / "VOC2007").is_dir():
        chosen = "mini"
    proposals = stored.get("proposals", "sam")
    return Journey(RoadOptions(chosen, run, proposals=proposals, settings=settings))


def _unknown(values: dict, known: dict, prefix: str = "") -> list[str]:
    """Dotted names of `values` that `known` lacks."""
    lost = []
    for name, value in values.items():
        if name not in known:
            lost += [] if name in RENAMED else [prefix + name]
        elif isinstance(value, dict) and isinstance(known[name], dict):
            lost += _unknown(value, known[name], f"{prefix}{name}.")
    return lost
