"""Test-time views: a detector shown every image at several sizes, plain and mirrored."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from weaksam_jax.boxes import clip, flip, iou, to_xywh
from weaksam_jax.data.batches import resize_to_canvas
from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.scales import Canvas, Scale, shape_group

# images uint8 [B, H, W, 3], sizes [B, 2] -> boxes [B, D, 4], scores, labels, valid [B, D]
Detector = Callable[[np.ndarray, np.ndarray], tuple]
Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes [n, 4], scores [n], labels [n]


def detect_split(
    detector: Detector,
    split: TagSplit,
    views: Sequence[Scale],
    mirrored: bool,
    batch: int,
    iou_threshold: float,
    max_detections: int,
    progress: bool = True,
    factors: np.ndarray | None = None,
) -> list[dict]:
    """COCO results of every image of `split` (its tags are not read), best first in each image.

    views: scales; an image is shown in one canvas of each (`shape_group`), mirrored too when
    `mirrored`. The union of all views goes through one class-wise NMS.
    factors: float `[images, C]`, what the scores of each class are multiplied with.
    """
    pooled: list[list[Found]] = [[] for _ in split.records]
    jobs = [job for view in views for job in _jobs(split.records, view, batch)]
    bar = tqdm(
        total=len(split.records) * len(views), desc="detect", unit="images", disable=not progress
    )
    with bar:
        for (indices, _), (images, sizes) in zip(jobs, _load(split, jobs, batch), strict=True):
            for mirror in (False, True) if mirrored else (False,):
                shown = _mirror(images, sizes) if mirror else images
                outputs = [np.asarray(value) for value in detector(shown, sizes)]
                for row, index in enumerate(indices):
                    found = [value[row] for value in outputs]
                    record = split.records[index]
                    pooled[index].append(_to_image(found, sizes[row], record, mirror))
            bar.update(len(indices))
    results = []
    for index, (record, parts) in enumerate(zip(split.records, pooled, strict=True)):
        boxes, scores, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        if factors is not None:
            scores = scores * factors[index, labels]
        keep = classwise_nms(boxes, scores, labels, iou_threshold)[:max_detections]
        results += _coco(record, split, boxes[keep], scores[keep], labels[keep])
    return results


def classwise_nms(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou_threshold: float
) -> np.ndarray:
    """Indices kept by greedy NMS within each class, by falling score (ties: lower index first).

    A box goes when its IoU with a kept one of its class is above the threshold.
    """
    alive = np.ones(len(boxes), bool)
    for label in np.unique(labels):  # a matrix a class: 24 views of 80 classes give 4800 boxes
        own = np.flatnonzero(labels == label)
        own = own[np.argsort(-scores[own], kind="stable")]
        overlap = iou(boxes[own], boxes[own]) > iou_threshold
        for place, index in enumerate(own):
            if alive[index]:
                alive[own[place + 1 :]] &= ~overlap[place, place + 1 :]
    order = np.argsort(-scores, kind="stable")
    return order[alive[order]]


def _jobs(
    records: Sequence[TagRecord], view: Scale, batch: int
) -> Iterator[tuple[list[int], Canvas]]:
    """Batches of image indices that share a canvas."""
    groups: dict[Canvas, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(view[shape_group(record, [view])], []).append(index)
    for canvas, members in groups.items():
        for start in range(0, len(members), batch):
            yield members[start : start + batch], canvas


def _load(
    split: TagSplit, jobs: Sequence[tuple[list[int], Canvas]], batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images uint8 `[batch, H, W, 3]` and sizes float32 `[batch, 2]`, loaded one job ahead.

    A last batch is filled up with its first image, so that every call has the same shape.
    """

    def load(job):
        indices, canvas = job
        images, sizes = [], []
        for index in indices:
            image = load_image(split.records[index].path)
            image, _, size = resize_to_canvas(image, np.zeros((0, 4), np.float32), canvas)
            images.append(image)
            sizes.append(size)
        rest = batch - len(indices)
        images, sizes = images + images[:1] * rest, sizes + sizes[:1] * rest
        return np.stack(images), np.asarray(sizes, np.float32)

    with ThreadPoolExecutor(1) as pool:
        ahead = None
        for job in jobs:
            current, ahead = ahead, pool.submit(load, job)
            if current is not None:
                yield current.result()
        if ahead is not None:
            yield ahead.result()


def _mirror(images: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The visible part of each canvas mirrored left-right, in place of itself."""
    out = images.copy()
    for row, (height, width) in enumerate(sizes.astype(int)):
        out[row, :height, :width] = images[row, :height, :width][:, ::-1]
    return out


def _to_image(found: Sequence[np.ndarray], size: np.ndarray, record: TagRecord, mirror: bool):
    """The valid detections of one view in pixels of the original image."""
    boxes, scores, labels, valid = found
    boxes, scores, labels = boxes[valid], scores[valid], labels[valid]
    if mirror:
        boxes = flip(boxes, size[1])
    factor = np.asarray([record.width / size[1], record.height / size[0]] * 2, np.float32)
    return clip(boxes * factor, record.width, record.height), scores, labels


def _coco(record: TagRecord, split: TagSplit, boxes, scores, labels) -> list[dict]:
    return [
        {
            "image_id": record.image_id,
            "file_name": record.file_name,
            "category_id": split.category_ids[label],
            "bbox": [round(float(value), 2) for value in box],
            "score": round(float(score), 6),
        }
        for box, score, label in zip(to_xywh(boxes), scores, labels, strict=True)
    ]
