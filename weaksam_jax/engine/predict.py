"""Detection on a split by any detector: views in, COCO results out, and views merged by NMS."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from weaksam_jax.boxes import iou
from weaksam_jax.data.detections import to_coco, write_results
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.views import restore_boxes
from weaksam_jax.engine.distributed import process, run_on_all, run_on_leader
from weaksam_jax.engine.journal import Journal, gather, own_part
from weaksam_jax.engine.mesh import local_mesh, over_images, put_images, replicated
from weaksam_jax.engine.step import Params
from weaksam_jax.errors import BadInput
from weaksam_jax.progress import progress_bar

UNUSED = -1  # category id of a detector's classes that the data do not have
THREADS = 4  # that load and resize images


class Detections(NamedTuple):
    """What a detector finds in B images, best first, padded to D per image.

    boxes float32 `[B, D, 4]`, scores float32 `[B, D]`, labels int32 `[B, D]`, valid bool `[B, D]`;
    masks bool `[B, D, H, W]` or None.
    """

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array
    valid: jax.Array
    masks: jax.Array | None = None


class Found(NamedTuple):
    """What was found in one image: boxes `[n, 4]` in its pixels, scores `[n]`, labels `[n]`."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


# Batches of the same images, one per view -> what was found in each image.
Predictor = Callable[[Iterable[dict]], list[Found]]


class Views(Protocol):
    """Test images in every view: `views(indices, pool)` gives a batch of these images, which are of
    one bucket, per view; see `weaksam_jax.data.views.ImageViews`."""

    split: TagSplit
    batch_size: int
    buckets: Sequence[int]

    def __call__(self, indices: Sequence[int], pool: Executor) -> Iterator[dict]: ...


def detect_split(
    predictor: Predictor, views: Views, *, journal: Journal | None = None, progress: bool = True
) -> list[dict]:
    """COCO results of every image of `views.split` (its tags are not read), best first in each.

    predictor: `detector.predictor(params)`. journal: images that it holds are not detected again.
    Labels whose category in the split is `UNUSED` are left out. All results are in memory then;
    `detect_file` is for splits of any size.
    """
    records, found = views.split.records, {}
    done = () if journal is None else journal.done
    for record, rows in _results(predictor, views, skip=done, progress=progress):
        if journal is None:
            found[record.image_id] = rows
        else:
            journal.add({record.image_id: rows})
    held = found.__getitem__ if journal is None else journal.rows
    return [one for record in records for one in held(record.image_id)]


def detect_file(
    path: str | Path,
    predictor: Predictor,
    views: Views,
    *,
    journal: str | Path,
    key: str,
    progress: bool = True,
) -> int:
    """Writes the results of `detect_split` to a COCO results file; returns how many there are.

    One image's results are in memory at a time: what was found waits in the file `journal`, from
    which a detection that was stopped goes on, and which is removed in the end. key: a hash of
    everything that decides the results. Several processes, which all call this, share the images
    out; each has a journal beside `journal`, and process 0 puts the file together.
    """
    journal, records = Path(journal), views.split.records
    run_on_leader(lambda: len(gather(journal, key).done))
    before, (index, count) = Journal(journal, key), process()
    own = before if count == 1 else Journal(own_part(journal, index), key)
    todo = [i for i, record in enumerate(records) if record.image_id not in before.done]

    def work() -> None:
        mine = _share(todo, views.buckets, index=index, count=count)
        for record, rows in _results(predictor, views, todo=mine, progress=progress and not index):
            own.add({record.image_id: rows})

    def finish() -> int:
        whole = gather(journal, key)
        written = write_results(path, (whole.rows(record.image_id) for record in records))
        journal.unlink()
        return written

    run_on_all(work)
    return run_on_leader(finish)


def _share(todo: Sequence[int], buckets: Sequence[int], *, index: int, count: int) -> list[int]:
    """Those of the images `todo` that one of several processes detects: as many of each bucket."""
    ordered = sorted(todo, key=lambda i: buckets[i])
    return sorted(ordered[index::count])


def _results(
    predictor: Predictor,
    views: Views,
    *,
    todo: Sequence[int] | None = None,
    skip: Container[int] = (),
    progress: bool = True,
) -> Iterator[tuple[TagRecord, list[dict]]]:
    """(record, its COCO results) of the images `todo` [all] whose id is not in `skip`."""
    split = views.split
    todo = range(len(split.records)) if todo is None else todo
    todo = [i for i in todo if split.records[i].image_id not in skip]
    bar = progress_bar(None, f"detect {split.split}", total=len(todo), disable=not progress)
    with bar:
        for index, found in detect_images(predictor, views, todo):
            record = split.records[index]
            yield record, _known(to_coco(record, split, **found._asdict()))
            bar.update()


def detect_images(
    predictor: Predictor, views: Views, todo: Sequence[int] | None = None
) -> Iterator[tuple[int, Found]]:
    """(index, what was found) of the images `todo` of a split [all], bucket by bucket.

    `views.batch_size` images at a time, or the next larger number that all devices of this process
    have a share in.
    """
    todo = range(len(views.split.records)) if todo is None else todo
    at_once = views.batch_size + -views.batch_size % jax.local_device_count()
    with ThreadPoolExecutor(THREADS) as pool:
        for chunk in _chunks(todo, views.buckets, at_once):
            # A last batch is filled up, so that every call has the same shape.
            padded = chunk + [chunk[-1]] * (at_once - len(chunk))
            yield from zip(chunk, predictor(views(padded, pool)), strict=False)


def _known(results: list[dict]) -> list[dict]:
    return [one for one in results if one["category_id"] != UNUSED]


def _chunks(todo: Sequence[int], buckets: Sequence[int], at_once: int) -> Iterator[list[int]]:
    """At most `at_once` images of one bucket at a time."""
    for bucket in sorted(set(buckets)):
        members = [i for i in todo if buckets[i] == bucket]
        for start in range(0, len(members), at_once):
            yield members[start : start + at_once]


def with_classes(split: TagSplit, classes: Sequence[str] | int, path: str | Path) -> TagSplit:
    """`split` with a detector's classes in the detector's order (its tags are not to be read then).

    classes: their names, or their number where the detector's file names none: then the data must
    have as many, in the detector's order. A class that the data do not have gets the category
    `UNUSED`. Raises `BadInput` with the detector's path when the data have a class that it does not
    know.
    """
    hint = "give data of the classes that it was trained on"
    if isinstance(classes, int):
        if classes != len(split.classes):
            problem = f"has {classes} classes, {split.dataset} has {len(split.classes)}"
            raise BadInput(path, problem, hint)
        return split
    unknown = [name for name in split.classes if name not in classes]
    if unknown:
        raise BadInput(path, f"does not know {unknown[0]}, a class of {split.dataset}", hint)
    ids = dict(zip(split.classes, split.category_ids, strict=True))
    categories = tuple(ids.get(name, UNUSED) for name in classes)
    return replace(split, classes=tuple(classes), category_ids=categories)


def on_devices(
    predict: Callable[[Params, dict], Detections], params: Params, mesh: Mesh | None = None
) -> Callable[[dict], Detections]:
    """`predict(params, batch)` as a function of a batch in host memory, of any number of images.

    The images are dealt out to the devices of `mesh` [all of this process]; the results, still on
    the devices, may have rows beyond those of the batch, which say nothing. One program per shape.
    """
    mesh = local_mesh() if mesh is None else mesh
    params, run = jax.device_put(params, replicated(mesh)), over_images(predict, mesh)
    return lambda batch: run(params, put_images(batch, mesh))


def union_of_views(
    predict: Callable[[dict], Detections], *, iou_threshold: float, max_detections: int
) -> Predictor:
    """Merges the views of an image: all their boxes through one class-wise NMS.

    predict: a batch (`image`, `size`) -> `Detections` in its pixels. Scores are multiplied by
    `class_factor` `[B, C]` before the NMS where a batch has it.
    """

    def predictor(views: Iterable[dict]) -> list[Found]:
        shown = [(batch, predict({k: batch[k] for k in ("image", "size")})) for batch in views]
        every = [(batch, jax.device_get(found)) for batch, found in shown]
        return [merge(every, row) for row in range(len(every[0][0]["size"]))]

    def merge(every, row: int) -> Found:
        parts = [_in_original(batch, found, row) for batch, found in every]
        boxes, scores, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        if "class_factor" in every[0][0]:
            scores = scores * every[0][0]["class_factor"][row, labels]
        keep = classwise_nms(boxes, scores, labels, iou_threshold=iou_threshold)[:max_detections]
        return Found(boxes[keep], scores[keep], labels[keep])

    return predictor


def _in_original(batch: dict, found: Detections, row: int) -> Found:
    """The valid detections of one image of a view, in pixels of the original."""
    valid = found.valid[row]
    boxes = restore_boxes(
        found.boxes[row][valid],
        batch["size"][row],
        batch["original"][row],
        flipped=batch["flipped"][row],
    )
    return Found(boxes, found.scores[row][valid], found.labels[row][valid])


def classwise_nms(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou_threshold: float
) -> np.ndarray:
    """Indices kept by greedy NMS within each class, by falling score (ties: lower index first).

    A box goes when its IoU with a kept one of its class is above the threshold.
    """
    alive = np.ones(len(boxes), bool)
    for label in np.unique(labels):  # a matrix per class: 24 views of 80 classes give 4800 boxes
        own = np.flatnonzero(labels == label)
        own = own[np.argsort(-scores[own], kind="stable")]
        overlap = iou(boxes[own], boxes[own]) > iou_threshold
        for place, index in enumerate(own):
            if alive[index]:
                alive[own[place + 1 :]] &= ~overlap[place, place + 1 :]
    order = np.argsort(-scores, kind="stable")
    return order[alive[order]]


def tag_factors(power: float, logits: np.ndarray | None) -> np.ndarray | None:
    """What the scores of each class in each image are multiplied with: the probability that a clue
    network gives it, to this power; None at 0.

    logits: float `[images, C]`. Raises `BadInput` when they are missing.
    """
    if not power:
        return None
    if logits is None:
        hint = "give the logits of a clue network, or set test.tag_power to 0"
        raise BadInput("the retrained detector", "has no tag logits", hint)
    return np.asarray(jax.nn.sigmoid(np.asarray(logits, np.float32)) ** power)
