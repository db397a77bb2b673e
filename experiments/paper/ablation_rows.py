"""The rows of Tables 5, 9, 10 and 11, what they have in common, and what their figures say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from experiments.paper.verdicts import spread_verdict, verdict
from experiments.pipeline import detectors
from experiments.pipeline.config import PRESETS, PipelineConfig
from experiments.pipeline.detectors import RetrainConfig
from experiments.pipeline.ledger import is_row
from experiments.pipeline.run import Run
from weaksam_jax.detectors import RETRAINERS
from weaksam_jax.detectors.dino.loss_config import QueryDropConfig
from weaksam_jax.detectors.faster_rcnn.config import DropConfig
from weaksam_jax.errors import BadInput, printable
from weaksam_jax.files import atomic_path
from weaksam_jax.pgt import AnyRule, PgtConfig
from weaksam_jax.settings import change


@dataclass(frozen=True)
class Method:
    """One row: how pseudo boxes are made and the detector is retrained."""

    pgt: PgtConfig
    retrain: RetrainConfig


def of_kind(run: Run, kind: str) -> PipelineConfig:
    """A run's settings with, as `retrain`, those of its retrained detector of a row of
    `RETRAINERS`; of its preset where it retrains none of that row."""
    config, wanted = run.config, RETRAINERS[kind].Config
    own = [config.retrain, *run.retrainings.values()]
    found = [one for one in own if isinstance(one, wanted)]
    preset = PRESETS.get(run.options.preset, PRESETS["mini"])
    return replace(config, retrain=found[0] if found else preset("mist", kind).retrain)


def shortened(config: PipelineConfig, share: float) -> PipelineConfig:
    """With `share` of the retraining schedule, and the thresholds of its rule written out."""
    retrain = detectors.shortened(config.retrain, share)
    return replace(config, pgt=config.pgt.resolved(), retrain=retrain)


def drop_or_paper(config: PipelineConfig) -> DropConfig | QueryDropConfig:
    """The config's drop, or the paper's for its detector where it has none."""
    return config.retrain.loss.drop or type(config.retrain)().loss.drop


def drop_name(config: PipelineConfig) -> str:
    """ "RoI drop" or "query drop"."""
    return "RoI drop" if isinstance(drop_or_paper(config), DropConfig) else "query drop"


def table_5(config: PipelineConfig, rules: Sequence[AnyRule] = ()) -> dict[str, Method]:
    """The rows of Table 5a or 5b with the run's settings, and one for each further rule."""
    plain = change(config.retrain, {"loss.drop": None})
    dropped = change(config.retrain, {"loss.drop": drop_or_paper(config)})
    return {
        "top-1": Method(replace(config.pgt, rule="top_k", k=1), plain),
        "adaptive": Method(config.pgt, plain),
        f"adaptive + {drop_name(config)}": Method(config.pgt, dropped),
        **{f"rule {rule}": Method(PgtConfig(rule=rule).resolved(), plain) for rule in rules},
    }


def table_9(
    config: PipelineConfig, tau_reg: Sequence[float], tau_cls: Sequence[float]
) -> dict[str, Method]:
    """Rows "tau_reg x, tau_cls y": each threshold changed while the other is the run's."""
    drop = drop_or_paper(config)
    changed = [replace(drop, tau_reg=value) for value in tau_reg]
    changed += [replace(drop, tau_cls=value) for value in tau_cls]
    return {
        f"tau_reg {one.tau_reg:g}, tau_cls {one.tau_cls:g}": _with_drop(config, one)
        for one in changed
    }


def table_10(config: PipelineConfig) -> dict[str, Method]:
    """Rows without query drop, of things alone, and of things and background."""
    drop = drop_or_paper(config)
    drops = {"no drop": None, "things": replace(drop, background=False)}
    drops |= {"things + background": replace(drop, background=True)}
    return {name: _with_drop(config, one) for name, one in drops.items()}


def table_11(config: PipelineConfig, percentiles: Sequence[float]) -> dict[str, Method]:
    """Rows "percentile x" of query drop; 100 drops nothing."""
    drop = drop_or_paper(config)
    drops = {f"percentile {one:g}": replace(drop, percentile=one) for one in percentiles}
    return {name: _with_drop(config, one) for name, one in drops.items()}


def _with_drop(config: PipelineConfig, drop: DropConfig | QueryDropConfig | None) -> Method:
    return Method(config.pgt, change(config.retrain, {"loss.drop": drop}))


def undropped(method: Method) -> Method:
    """The method without drop."""
    return change(method, {"retrain.loss.drop": None})


def common_steps(methods: Mapping[str, Method], name: str) -> int:
    """Steps that a method has in common with the others that differ from it in drop alone: all
    before the first drop begins; 0 when there are no others."""
    own = undropped(methods[name])
    alike = [one.retrain for one in methods.values() if undropped(one) == own]
    drops = [one.loss.drop for one in alike]
    return min((drop.start for drop in drops if drop is not None), default=0) * (len(drops) > 1)


def check_drop(methods: Mapping[str, Method]) -> None:
    """`BadInput` for a drop that would begin after the last step: a row equal to the other."""
    for name, method in methods.items():
        drop, steps = method.retrain.loss.drop, method.retrain.optim.steps
        if drop is not None and drop.start >= steps:
            problem = f"({name}) begins at step {drop.start} of {steps}: never"
            raise BadInput("the drop", problem, "give a run with an earlier start of the drop")


def setting_notes(config: PipelineConfig) -> list[str]:
    """What the rows have in common: settings that the paper has otherwise are to be seen."""
    pgt, drop, steps = config.pgt, drop_or_paper(config), config.retrain.optim.steps
    return [
        f"adaptive: rule {pgt.rule}, tau_s {pgt.score_threshold:g}, tau_o "
        f"{pgt.overlap_threshold:g} (paper: 0.3, 0.85)",
        f"{drop_name(config)}: {_drop_note(drop)}, from step {drop.start} of {steps}",
    ]


def supervision_notes(rows: Sequence[Mapping]) -> list[str]:
    """What the rows' retrainings started from, each once, and what that had been trained on."""
    return list(dict.fromkeys(printable(_start_note(row.get("started_from", {}))) for row in rows))


def _start_note(start: Any) -> str:
    if start is None:
        return "start: fresh weights"
    if not is_row(start):  # of a cell that was finished by other code
        return "start: not recorded"
    allowed = f"; allowed: {start['allowed']}" if "allowed" in start else ""
    seen = f"which had seen {start['supervision']} ({start['source']})"
    return f"start: {start['file']}, {seen}{allowed}"


def _drop_note(drop: DropConfig | QueryDropConfig) -> str:
    if isinstance(drop, DropConfig):
        taus = f"tau_cls {drop.tau_cls:g}, tau_reg {drop.tau_reg:g}"
        return f"{taus} (paper: 4, 1), rule {drop.rule}"
    names = ("background", "encoder", "denoising")
    ranked = ["things", *(name for name in names if getattr(drop, name))]
    return f"percentile {drop.percentile:g} (paper: 90) of {', '.join(ranked)}, {drop.scope}"


def verdicts_in_turn(found: Mapping[str, list[float]]) -> list[str]:
    """What each row brought over the one before. found: method -> AP50 of each seed."""
    return [verdict(f"{b} after {a}", found[b], found[a]) for a, b in pairwise(found)]


def verdicts_5(found: Mapping[str, list[float]]) -> list[str]:
    """What each row brought over the one before, a further rule over "adaptive". found: method ->
    AP50 of each seed."""
    pairs = [*pairwise(list(found)[:3]), *(("adaptive", rule) for rule in list(found)[3:])]
    return [verdict(f"{b} after {a}", found[b], found[a]) for a, b in pairs]


def verdicts_9(
    found: Mapping[str, list[float]], methods: Mapping[str, Method], base: DropConfig
) -> list[str]:
    """Whether the values of a threshold differ, where the other one is that of `base`."""
    lines, drops = [], {name: one.retrain.loss.drop for name, one in methods.items()}
    for kind, other in (("tau_reg", "tau_cls"), ("tau_cls", "tau_reg")):
        wanted = getattr(base, other)
        own = {name: found[name] for name, drop in drops.items() if getattr(drop, other) == wanted}
        if len(own) > 1:
            lines.append(spread_verdict(kind, own))
    return lines


def draw(rows: Sequence[dict], path: Path) -> None:
    """AP50 of every seed and the mean of each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axis, names = figure.subplots(), list(dict.fromkeys(row["method"] for row in rows))
    for place, name in enumerate(names):
        values = [row["ap50"] for row in rows if row["method"] == name]
        axis.plot([place] * len(values), values, "o", color="tab:blue", alpha=0.6)
        axis.plot(place, np.mean(values), "_", color="tab:red", markersize=30)
    axis.set_xticks(range(len(names)), names, rotation=20 if len(names) > 3 else 0)
    axis.set(ylabel="AP50 on the test split, %", title="every seed, and the mean")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
