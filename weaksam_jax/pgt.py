"""Adaptive pseudo ground truth (PGT): which detections of a training image become its boxes.

Host side, NumPy: it runs once per image, on at most a hundred boxes. Facts on the official script
(hustvl/WeakSAM, retraining/SoS-WSOD/tools/adaptive_pgt.py): docs/provenance/mil.md, section 5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np

from weaksam_jax.boxes import area, clip, containment, from_xywh, intersection
from weaksam_jax.data.detections import Results, annotation, annotation_file, as_arrays
from weaksam_jax.data.records import TagSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.ranges import Count, Settings, Share

Rule = Literal["paper", "best_kept", "official", "official_voc", "pgf"]
AnyRule = Literal[Rule, "top_k"]
# Classes whose boxes may lie in one another, by SoS-WSOD's PGF (WeakSAM's script empties the list).
PGF_NESTED = ("bottle", "bus", "car", "chair", "cow", "pottedplant", "sheep")


def _own_threshold(rule: AnyRule) -> float:
    return 0.2 if rule == "pgf" else 0.3


def _check_thresholds(score: float | None, overlap: float) -> None:
    """`BadInput` unless both are in 0..1 (NaN is not)."""
    for name, value in (("score_threshold", score), ("overlap_threshold", overlap)):
        _demand(name, value, value is None or 0 <= value <= 1, wanted="a number from 0 to 1")


def _demand(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise BadInput(f"setting {name}", f"is {value!r}", f"give {wanted}")


@dataclass(frozen=True)
class PgtConfig(Settings):
    """Which detections become pseudo boxes."""

    rule: AnyRule = "paper"
    """paper: Algorithm 2; best_kept: the same, but the best box of a class stays and boxes around
    it go; official, official_voc: what the official script does, on COCO and on VOC; pgf:
    SoS-WSOD's; top_k: the `k` best of each class."""
    score_threshold: Share | None = None
    """tau_s of Algorithm 2 [the rule's own: 0.3; pgf: 0.2, of the scores as they are]."""
    overlap_threshold: Share = 0.85
    """tau_o: a box with so much of it in another goes."""
    k: Count = 1
    """top_k: boxes of each class in an image."""
    nested: tuple[str, ...] | None = None
    """Classes without the overlap test [the rule's own: none; pgf: `PGF_NESTED`]."""

    def resolved(self) -> "PgtConfig":
        """The same, with the rule's own values where there is None."""
        threshold, nested = self.score_threshold, self.nested
        if threshold is None:
            threshold = _own_threshold(self.rule)
        if nested is None:
            nested = PGF_NESTED if self.rule == "pgf" else ()
        return replace(self, score_threshold=threshold, nested=nested)


def adaptive_pgt(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    image_labels: Sequence[int] | np.ndarray,
    score_threshold: float | None = None,
    overlap_threshold: float = 0.85,
    rule: Rule = "paper",
    nested: Sequence[int] = (),
) -> np.ndarray:
    """Indices, ascending, of the detections that Algorithm 2 keeps.

    boxes `[N, 4]`, scores `[N]`, labels int `[N]`; image_labels: the image's classes (class
    indices, or bool `[C]`); detections of other classes are dropped. score_threshold: None is the
    rule's own (0.3; pgf: 0.2).

    rule="paper": within a class s' = (s - min) / (max - min), and 1 where max = min; candidates are
    s' > score_threshold and always the class's best; then drop box j when |b_j ∩ b_k| / |b_j| >=
    overlap_threshold for another candidate k. The best is sure to be a candidate and no more: the
    overlap test may remove it for a worse box around it, as Algorithm 2 says. Of boxes that contain
    each other the best scored stays (the paper is silent), so no class vanishes.

    rule="best_kept" (ours): the class's best is kept, boxes that have overlap_threshold of it in
    them are dropped, and the rest goes through "paper".

    rule="official": s' = s / (max - min + 1e-8) without the subtraction; the first detection of a
    class in the given order is always kept (its best, as test output is sorted); the containment
    test is simultaneous, with area + 1e-6. rule="official_voc": the same as run on VOC, where the
    script takes x2 and y2 for width and height in that test. rule="pgf": as "official" with s' = s
    (SoS-WSOD's filter). nested: class indices whose boxes are not tested for containment.

    Raises `BadInput` for another rule and for thresholds outside 0..1.
    """
    _demand("rule", rule, rule in get_args(Rule), wanted=" or ".join(get_args(Rule)))
    _check_thresholds(score_threshold, overlap_threshold)
    if score_threshold is None:
        score_threshold = _own_threshold(rule)
    boxes, scores, labels = np.asarray(boxes, np.float64), np.asarray(scores), np.asarray(labels)
    kept = [np.zeros(0, np.int64)]
    for label in _classes(image_labels):
        index = np.flatnonzero(labels == label)
        if len(index):
            limit = np.inf if label in nested else overlap_threshold
            own = boxes[index], scores[index], score_threshold, limit
            alone = {"paper": _paper, "best_kept": _best_kept}.get(rule)
            kept.append(index[alone(*own) if alone else _official(*own, rule)])
    return np.sort(np.concatenate(kept))


def top_k_pgt(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    image_labels: Sequence[int] | np.ndarray,
    k: int = 1,
) -> np.ndarray:
    """Indices, ascending, of the k best detections of each of the image's classes.

    Raises `BadInput` for k < 1.
    """
    _demand("k", k, k >= 1, wanted="1 or more")
    scores, labels = np.asarray(scores), np.asarray(labels)
    kept = [np.zeros(0, np.int64)]
    for label in _classes(image_labels):
        index = np.flatnonzero(labels == label)
        kept.append(index[np.argsort(-scores[index], kind="stable")[:k]])
    return np.sort(np.concatenate(kept))


def make_pgt(detections: Results, train: TagSplit, config: PgtConfig = PgtConfig()) -> dict:
    """A COCO annotation dictionary of the pseudo boxes of every image of `train`.

    detections: COCO results of the MIL detector on `train`, each with a finite box and score
    (`weaksam_jax.data.detections.read_detections` reads such). Before every rule they are cut to
    the image, and what is empty then takes no part; the official script does neither, so
    rule="official" differs from it there: in the cut boxes, in max and min of a class with an empty
    box, and where a class's first detection is empty.

    Raises `BadDetections` for an image or a category that `train` does not have, and `BadInput` for
    classes in `config.nested` that it does not have (all of `PGF_NESTED` may always be given).
    """
    choose, rows = _chooser(config.resolved(), train), []
    found = as_arrays(detections, train)
    for record, own in zip(train.records, found.of_images(), strict=True):
        boxes = clip(from_xywh(found.xywh[own]), record.width, record.height)
        whole = area(boxes) > 0
        own, boxes = own[whole], boxes[whole]
        scores, labels = found.scores[own], found.labels[own]
        for index in choose(boxes, scores, labels, image_labels=record.tags):
            category, score = train.category_ids[labels[index]], float(scores[index])
            rows.append(annotation(record.image_id, category, boxes[index], score=score))
    return annotation_file(train, rows, f"pseudo ground truth of {train.dataset}/{train.split}")


def _chooser(config: PgtConfig, train: TagSplit) -> Callable[..., np.ndarray]:
    """(boxes, scores, labels, image_labels) of an image -> indices of its pseudo boxes."""
    nested = _nested_labels(config.nested, train)
    if config.rule == "top_k":
        return partial(top_k_pgt, k=config.k)
    return partial(
        adaptive_pgt,
        score_threshold=config.score_threshold,
        overlap_threshold=config.overlap_threshold,
        rule=config.rule,
        nested=nested,
    )


def _nested_labels(names: Sequence[str], train: TagSplit) -> list[int]:
    unknown = [name for name in names if name not in train.classes]
    if unknown and set(names) != set(PGF_NESTED):
        problem = f"{', '.join(unknown)}: no class of {train.dataset}/{train.split}"
        raise BadInput("setting nested", problem, f"choose from {', '.join(train.classes)}")
    return [label for label, name in enumerate(train.classes) if name in names]


def _classes(image_labels) -> np.ndarray:
    """Ascending class indices of either form of image labels."""
    image_labels = np.asarray(image_labels)
    if image_labels.dtype == bool:
        return np.flatnonzero(image_labels)
    return np.unique(image_labels.astype(np.int64))


def _paper(boxes, scores, score_threshold, overlap_threshold) -> np.ndarray:
    candidate = _candidates(scores, score_threshold)
    return _uncovered(boxes, scores, np.flatnonzero(candidate), overlap_threshold=overlap_threshold)


def _best_kept(boxes, scores, score_threshold, overlap_threshold) -> np.ndarray:
    best = np.argmax(scores)
    around = containment(boxes[[best]], boxes)[0] >= overlap_threshold
    around[best] = False
    candidate = _candidates(scores, score_threshold) & ~around
    return _uncovered(boxes, scores, np.flatnonzero(candidate), overlap_threshold=overlap_threshold)


def _candidates(scores, score_threshold) -> np.ndarray:
    low, high = scores.min(), scores.max()
    normalised = (scores - low) / (high - low) if high > low else np.ones_like(scores)
    candidate = normalised > score_threshold
    candidate[np.argmax(scores)] = True
    return candidate


def _uncovered(boxes, scores, index, overlap_threshold) -> np.ndarray:
    """Those of `index` that lie in no other of them."""
    index = index[np.argsort(-scores[index], kind="stable")]  # better ones first
    inside = containment(boxes[index], boxes[index]) >= overlap_threshold
    np.fill_diagonal(inside, False)
    # j falls to k when j lies in k, unless k lies in j as well and is the worse of the two.
    rank = np.arange(len(index))
    mutual_worse = inside & inside.T & (rank[None, :] > rank[:, None])
    kept = ~(inside & ~mutual_worse).any(axis=1)
    kept[0] |= not kept.any()  # boxes that fell to one another in a ring
    return index[kept]


def _official(boxes, scores, score_threshold, overlap_threshold, rule: Rule) -> np.ndarray:
    if rule != "pgf":
        scores = scores / (scores.max() - scores.min() + 1e-8)
    candidate = scores >= score_threshold
    candidate[0] = True
    index = np.flatnonzero(candidate)
    if rule == "official_voc":
        boxes = from_xywh(boxes)
    shared = intersection(boxes[index], boxes[index]) / (area(boxes[index]) + 1e-6)[:, None]
    np.fill_diagonal(shared, 0.0)
    return index[~(shared >= overlap_threshold).any(axis=1)]
