"""The report's tables: metrics.json in words, and average precision by class."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from weaksam_jax.data.records import TruthSplit
from weaksam_jax.report.artefacts import (
    KIND_NAMES,
    Artefacts,
    is_number,
    kind_of,
    numbers,
    part,
)


def _of_further(kind: str, name: str) -> list[tuple[str, str, str, int]]:
    """Rows of a detector that is retrained beside another."""
    stage, said = f"retrain_{kind}", "retrained on the same pseudo boxes"
    return [
        (f"{stage}.ap50", f"AP50 of the retrained {name}", said, 2),
        (f"{stage}.ap", f"AP of the retrained {name}", "mean over IoU 0.5 to 0.95", 2),
        (f"{stage}_without_drop.ap50", f"AP50 of {name} without drop", "for comparison", 2),
        (f"{stage}_without_drop.ap", f"AP of {name} without drop", "for comparison", 2),
    ]


# Known figures: place in metrics.json, name, what it says, and whether it is a share (0..1).
KNOWN = (
    ("clues.tag_map", "Tag mAP", "how well the clue network names the classes of test images", 1),
    ("proposals.per_image", "Proposals per image", "boxes SAM (or selective search) offers", 0),
    ("proposals.recall.0.50", "Proposal recall, IoU 0.5", "objects that some proposal covers", 1),
    ("proposals.recall.0.75", "Proposal recall, IoU 0.75", "the same, tightly", 1),
    ("proposals.recall.0.90", "Proposal recall, IoU 0.9", "the same, almost exactly", 1),
    ("wsod.cam_corloc", "CorLoc of thresholded class maps", "the simplest baseline", 2),
    ("wsod.corloc", "CorLoc of the MIL detector", "training images whose best box is right", 2),
    ("wsod.cam_ap50", "AP50 of thresholded class maps", "the simplest baseline", 2),
    ("wsod.ap50", "AP50 of the MIL detector", "average precision at IoU 0.5, test images", 2),
    ("wsod.ap", "AP of the MIL detector", "mean over IoU 0.5 to 0.95", 2),
    ("pgt_top1.precision50", "Top-1 pseudo boxes: precision", "boxes that are right", 1),
    ("pgt_top1.recall50", "Top-1 pseudo boxes: recall", "training objects that are found", 1),
    ("pgt.per_image", "Adaptive pseudo boxes per image", "what the detector is retrained on", 0),
    ("pgt.precision50", "Adaptive pseudo boxes: precision", "boxes that are right", 1),
    ("pgt.recall50", "Adaptive pseudo boxes: recall", "training objects that are found", 1),
    ("masks.iou", "IoU of the pseudo masks", "with the true mask that fits best", 1),
    (
        "retrain.ap50",
        "AP50 of the retrained detector",
        "trained on the pseudo boxes, test images",
        2,
    ),
    ("retrain.ap", "AP of the retrained detector", "mean over IoU 0.5 to 0.95", 2),
    ("retrain_without_drop.ap50", "AP50 retrained without drop", "for comparison", 2),
    ("retrain_without_drop.ap", "AP retrained without drop", "for comparison", 2),
    *(row for kind, name in KIND_NAMES.items() for row in _of_further(kind, name)),
)
# Parts of metrics.json that have a place of their own in the report.
_ELSEWHERE = ("dataset", "versions", "seconds", "seed", "supervision", "proposals.recall_at")
# What a file of weights was used for, by its row of the ledger.
_USES = {
    "clues": "clue network",
    "clues_start": "start of the clue network",
    "sam": "SAM",
    "proposals": "proposals",
    "wsod_start": "start of the MIL detector",
    "retrain_start": "start of the retrained detector",
}


@dataclass(frozen=True)
class Figure:
    """One line of the results table. key: place in metrics.json; value: as text."""

    key: str
    name: str
    meaning: str
    value: str


def results(metrics: Mapping) -> tuple[list[Figure], list[Figure]]:
    """(known figures in the pipeline's order, all others under their own names)."""
    values = dict(flatten(metrics))
    known = [
        Figure(key, name, meaning, value=as_text(values[key], kind))
        for key, name, meaning, kind in KNOWN
        if is_number(values.get(key))
    ]
    shown = {figure.key for figure in known}
    others = [
        Figure(key, key, "", value=as_text(value, 0))
        for key, value in values.items()
        if key not in shown and not key.startswith(_ELSEWHERE) and ".per_class." not in key
    ]
    return known, others


def as_text(value, kind: int) -> str:
    """kind 0: the number as it is; 1: a share, in percent; 2: percent already."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if kind:
        return f"{100 * value if kind == 1 else value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def flatten(value, name: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, leaf) of nested dictionaries."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(str, value))
    else:
        yield name, value


def seconds(metrics: Mapping) -> list[tuple[str, str, float]]:
    """(stage, time as text, percent of the longest) of each stage."""
    times = {name: time for name, time in numbers(part(metrics, "seconds")).items() if time >= 0}
    longest = max([*times.values(), 1e-9])
    return [(name, duration(time), 100 * time / longest) for name, time in times.items()]


def duration(time: float) -> str:
    """ "1 h 02 min", "3 min 05 s" or "4.2 s"."""
    if time < 60:
        return f"{time:.1f} s"
    minutes, rest = divmod(round(time), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def by_class(artefacts: Artefacts, train_truth: TruthSplit | None) -> dict | None:
    """{"columns": [...], "rows": [[class index, cells...]]}; None without figures by class."""
    train, metrics = artefacts.train, artefacts.metrics
    ap = {
        name: numbers(part(metrics, name, "per_class"))
        for name in metrics
        if part(metrics, name, "per_class")
    }
    if not ap:
        return None
    indices = range(len(train.classes))
    counts = {"training images": [sum(i in r.tags for r in train.records) for i in indices]}
    if train_truth is not None:
        labels = [record.labels for record in train_truth.records]
        counts["training objects"] = np.bincount(_join(labels), minlength=len(indices)).tolist()
    if artefacts.found["pgt"] is not None:
        labels = [found.labels for found in artefacts.found["pgt"].values()]
        counts["pseudo boxes"] = np.bincount(_join(labels), minlength=len(indices)).tolist()
    titles = {"wsod": "AP50 MIL", "retrain": "AP50 retrained"}
    titles |= {"retrain_without_drop": "AP50 without drop"}
    for stage in artefacts.files.further:
        titles |= {stage: f"AP50 {kind_of(stage)}"}
        titles |= {f"{stage}_without_drop": f"AP50 {kind_of(stage)} without drop"}
    table = []
    for index, name in enumerate(train.classes):
        cells = [str(column[index]) for column in counts.values()]
        cells += [f"{one[name]:.1f}" if name in one else "–" for one in ap.values()]
        table.append([index, *cells])
    return {
        "columns": [*counts, *(titles.get(name, f"{name}, by class") for name in ap)],
        "rows": table,
    }


def ledger(metrics: Mapping) -> list[dict[str, str]]:
    """Rows of the supervision ledger: use, file, supervision, source and, where weights saw more
    than tags and the user let a detector start from them, what was allowed."""
    rows = []
    for use, row in part(metrics, "supervision").items():
        words = row if isinstance(row, Mapping) else {}
        names = ("file", "supervision", "source", "allowed")
        kind = use.removeprefix("retrain_").removesuffix("_start")
        other = KIND_NAMES.get(kind, kind.replace("_", " "))
        said = _USES.get(use, f"start of the retrained detector ({other})")
        rows.append({"use": said, **{name: str(words.get(name, "")) for name in names}})
    return rows


def _join(labels: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *labels]).astype(np.int64)
