"""Random truths and detections, and the devkit's procedure as a loop."""

import numpy as np

from weaksam_jax.boxes import to_xywh
from weaksam_jax.data.records import TruthRecord, TruthSplit

CLASSES, IDS = ("ant", "bee", "cow"), (1, 5, 9)


def random_boxes(rng, count):
    corner = rng.integers(0, 30, (count, 2))
    return np.concatenate([corner, corner + rng.integers(4, 20, (count, 2))], 1).astype(np.float32)


def random_case(seed, difficult=0.2, images=6):
    """A truth, and detections that are its boxes moved, doubled, missed, mislabelled."""
    rng = np.random.default_rng(seed)
    records, found = [], []
    for image in range(images):
        count = int(rng.integers(0, 5))
        boxes, labels = random_boxes(rng, count), rng.integers(0, 3, count).astype(np.int32)
        flags = rng.random(count) < difficult
        records.append(
            TruthRecord(
                image * 7, f"{image}.jpg", None, 60, 60, boxes, labels, flags, np.zeros(count, bool)
            )
        )
        moved = boxes[rng.integers(0, count, 2 * count)] if count else boxes
        moved = moved + rng.integers(-2, 3, moved.shape)
        proposed = np.concatenate([moved, random_boxes(rng, 2)])
        for box in proposed:
            found.append(
                {
                    "image_id": image * 7,
                    "category_id": IDS[rng.integers(0, 3)],
                    "bbox": to_xywh(box).tolist(),
                    "score": float(rng.random()),
                }
            )
    return found, TruthSplit("made up", "test", CLASSES, IDS, tuple(records))


def overlap(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def corners(found):
    x, y, w, h = found["bbox"]
    return x, y, x + w, y + h


def devkit_ap(found, truth, label, eleven_points, overlap=overlap):
    """The devkit's procedure, one detection at a time, with the precision envelope as a loop."""
    mine = [one for one in found if one["category_id"] == IDS[label]]
    mine.sort(key=lambda one: -one["score"])
    used, right, wrong, curve = set(), 0, 0, []
    total = sum(int(((r.labels == label) & ~r.difficult).sum()) for r in truth.records)
    if total == 0:
        return None
    for one in mine:
        record = next(r for r in truth.records if r.image_id == one["image_id"])
        best, place = -1.0, None
        for j in range(len(record.labels)):
            if record.labels[j] == label and overlap(corners(one), record.boxes[j]) > best:
                best, place = overlap(corners(one), record.boxes[j]), j
        if best >= 0.5:
            if record.difficult[place]:
                continue
            if (record.image_id, place) in used:
                wrong += 1
            else:
                right += 1
                used.add((record.image_id, place))
        else:
            wrong += 1
        curve.append((right / total, right / (right + wrong)))
    if eleven_points:
        levels = [max([p for r, p in curve if r >= k / 10], default=0.0) for k in range(11)]
        return sum(levels) / 11
    ap, last = 0.0, 0.0
    for r, _ in curve:
        ap += (r - last) * max(p for q, p in curve if q >= r)
        last = r
    return ap
