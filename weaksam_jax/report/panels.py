"""The pictures of one image, side by side: what each stage of the pipeline saw or made of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from weaksam_jax.boxes import to_xywh
from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagRecord, TruthRecord, TruthSplit
from weaksam_jax.data.store import SOURCES
from weaksam_jax.evaluate.overlap import xywh_iou
from weaksam_jax.report.artefacts import Artefacts, Found, kind_of
from weaksam_jax.report.choose import Verdict, judge
from weaksam_jax.report.draw import (
    WHITE,
    class_colors,
    display_scale,
    draw_boxes,
    draw_masks,
    draw_points,
    enlarge,
    overlay_map,
)

LONG_SIDE = 400  # of a picture in the report, pixels
MOST_PROPOSALS = 250  # drawn; more would hide the image
DETECTION_SCORE = 0.5  # detections below are not drawn and not counted


@dataclass(frozen=True)
class Panel:
    """One picture. name: the column; note: a short line under it; image: uint8 RGB or None."""

    name: str
    note: str
    image: np.ndarray | None


@dataclass(frozen=True)
class Row:
    """One image's panels. tags: class indices; note: a sentence about the image."""

    record: TagRecord
    note: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Scene:
    """One image with all that is known of it, and the scale that it is drawn at."""

    artefacts: Artefacts
    record: TagRecord
    truth: TruthRecord | None
    image: np.ndarray
    scale: float
    classes: tuple[str, ...]

    @property
    def colors(self) -> list:
        return class_colors(len(self.classes))

    def judged(self, found: Found | None) -> Verdict | None:
        """The verdict on boxes, where there are boxes and a truth."""
        return None if found is None or self.truth is None else judge(found, self.truth)

    def boxes(self, name: str) -> Found | None:
        """This image's boxes of a file of the run; of detections those drawn."""
        by_image = self.artefacts.found[name]
        if by_image is None:
            return None
        found = by_image[self.record.image_id]
        drawn = ("mil", *self.artefacts.retrained)
        return found.above(DETECTION_SCORE) if name in drawn else found


def open_scene(artefacts: Artefacts, record: TagRecord, truth: TruthRecord | None) -> Scene:
    """Reads the photo."""
    image = load_image(record.path)
    long_side = max(image.shape[:2])
    scale = LONG_SIDE / long_side if long_side > LONG_SIDE else display_scale(image, LONG_SIDE)
    return Scene(
        artefacts, record, truth, image=image, scale=scale, classes=artefacts.train.classes
    )


def truth_by_id(truth: TruthSplit | None) -> dict[int, TruthRecord]:
    return {} if truth is None else {record.image_id: record for record in truth.records}


def train_row(scene: Scene) -> Row:
    """Photo, points over the fine CAM, proposals, top-1 and adaptive PGT, truth, pseudo masks."""
    verdicts = {name: scene.judged(scene.boxes(name)) for name in ("top1", "pgt")}
    panels = [
        photo(scene),
        points(scene),
        proposals(scene),
        pseudo(scene, "top1", "top-1 pseudo boxes", verdict=verdicts["top1"]),
        pseudo(scene, "pgt", "adaptive pseudo boxes", verdict=verdicts["pgt"]),
        truth(scene, verdicts["pgt"]),
        masks(scene),
    ]
    note = ""
    if verdicts["pgt"] is not None:
        adaptive = verdicts["pgt"]
        note = f"The adaptive rule finds {found_of(adaptive)}"
        note += "." if verdicts["top1"] is None else f", top-1 {found_of(verdicts['top1'])}."
    return Row(scene.record, note, tuple(panel for panel in panels if panel is not None))


def test_row(scene: Scene) -> Row:
    """Truth (or the photo), MIL detections, those of every retrained detector."""
    names = {"mil": "MIL detector", "retrain": "retrained detector"}
    further = scene.artefacts.files.further
    names |= {stage: f"retrained detector ({kind_of(stage)})" for stage in further}
    verdicts = {name: scene.judged(scene.boxes(name)) for name in names}
    last = verdicts["retrain"] or verdicts["mil"]
    panels = [truth(scene, last) or photo(scene)]
    panels += [pseudo(scene, name, title, verdict=verdicts[name]) for name, title in names.items()]
    said = [
        f"{names[name]}: {found_of(verdict)}, {verdict.wrong} wrong"
        for name, verdict in verdicts.items()
        if verdict is not None
    ]
    note = "; ".join(said)
    return Row(scene.record, note, tuple(panel for panel in panels if panel is not None))


def found_of(verdict: Verdict) -> str:
    """ "3 of 5 objects"."""
    plural = "object" if verdict.objects == 1 else "objects"
    return f"{verdict.objects - verdict.missed} of {verdict.objects} {plural}"


def photo(scene: Scene) -> Panel:
    return Panel("photo", "", enlarge(scene.image, scene.scale))


def points(scene: Scene) -> Panel | None:
    """The fine class activation maps of the image's classes, and the prompt points."""
    clues = scene.artefacts.clues(scene.record)
    if clues is None:
        return _absent(scene, "clues", "points over class maps")
    colors = [scene.colors[label] for label in clues["class_ids"]]
    drawn = overlay_map(scene.image, clues["fine"], colors, scale=scene.scale)
    scaled = clues["points"] * [scene.scale, scene.scale, 1, 1, 1]
    drawn = draw_points(drawn, scaled, scene.colors, sources=SOURCES, scale=1)
    return Panel("points over class maps", f"{len(scaled)} points", drawn)


def proposals(scene: Scene) -> Panel | None:
    """The proposals, thin, over the darkened photo; in colour the best fit of each true object."""
    found = scene.artefacts.proposals(scene.record)
    if found is None:
        return _absent(scene, "proposals", "proposals")
    count = min(len(found), MOST_PROPOSALS)
    drawn = draw_boxes(
        overlay_map(scene.image, np.zeros((0, 1, 1)), scale=scene.scale),
        found.boxes[:count] * scene.scale,
        np.zeros(count, int),
        classes=("",),
        colors=[WHITE],
        scale=1,
        text=False,
        thickness=1,
        opacity=0.45,
    )
    note = _count(len(found), "proposal", "proposals")
    note += f", {count} drawn" if count < len(found) else ""
    if scene.truth is not None and len(found) and len(scene.truth.boxes):
        overlap = xywh_iou(to_xywh(found.boxes.astype(float)), scene.truth.xywh)
        boxes, best = found.boxes[overlap.argmax(0)] * scene.scale, overlap.max(0)
        labels, colors = scene.truth.labels, scene.colors
        drawn = draw_boxes(
            drawn, boxes, labels, classes=scene.classes, scores=best, colors=colors, scale=1
        )
    return Panel("proposals", note, drawn)


def pseudo(scene: Scene, name: str, title: str, verdict: Verdict | None) -> Panel | None:
    """Boxes of a file of the run; a broken line where the box is wrong."""
    found = scene.boxes(name)
    if found is None:
        return None
    note = _count(len(found.boxes), "box", "boxes")
    if verdict is not None and len(found.boxes):
        note += f", {verdict.wrong} wrong"
    order = slice(None, None, -1)  # the best are drawn last, over the others
    drawn = draw_boxes(
        scene.image,
        found.boxes[order],
        found.labels[order],
        classes=scene.classes,
        scores=found.scores[order],
        scale=scene.scale,
        dashed=None if verdict is None else ~verdict.right[order],
    )
    return Panel(title, note, drawn)


def truth(scene: Scene, verdict: Verdict | None) -> Panel | None:
    """The annotated objects; a broken line where an object was missed."""
    if scene.truth is None:
        return None
    ignored = scene.truth.difficult | scene.truth.crowd
    count = len(scene.classes)
    names = (*scene.classes, *(f"{name} (difficult)" for name in scene.classes))
    drawn = draw_boxes(
        scene.image,
        scene.truth.boxes,
        scene.truth.labels + count * ignored,
        classes=names,
        colors=scene.colors * 2,
        scale=scene.scale,
        dashed=None if verdict is None else ~verdict.found,
    )
    note = _count(int((~ignored).sum()), "object", "objects")
    if verdict is not None:
        note += f", {verdict.missed} missed"
    return Panel("truth", note, drawn)


def masks(scene: Scene) -> Panel | None:
    """The pseudo masks."""
    found = scene.boxes("masks")
    if found is None:
        return None
    kept = [(m, label) for m, label in zip(found.masks, found.labels, strict=True) if m]
    rles, labels = [mask for mask, _ in kept], [label for _, label in kept]
    drawn = draw_masks(scene.image, rles, labels, colors=scene.colors, scale=scene.scale)
    return Panel("pseudo masks", _count(len(rles), "mask", "masks"), drawn)


def rows(
    artefacts: Artefacts,
    records: Sequence[TagRecord],
    truths: dict[int, TruthRecord],
    make: Callable[[Scene], Row],
) -> list[Row]:
    """One row per record."""
    return [make(open_scene(artefacts, r, truths.get(r.image_id))) for r in records]


def _absent(scene: Scene, store: str, name: str) -> Panel | None:
    """An empty panel where only this image has no file; none where the run has no such stage."""
    root = getattr(scene.artefacts.files, store)
    if (root / scene.artefacts.train.split).exists():
        return Panel(name, "no file for this image", None)
    return None


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
