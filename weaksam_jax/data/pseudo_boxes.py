"""Pseudo ground truth as training samples: COCO dictionary -> padded, augmented arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from weaksam_jax.boxes import area, clip, flip, from_xywh
from weaksam_jax.data.batches import Canvas, pad_boxes
from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.scales import Scale, check_scales, shape_group
from weaksam_jax.errors import BadInput

_MIN_SIDE = 4.0  # pixels of the canvas; smaller boxes are no training objects
_MIN_VISIBLE = 0.4  # share of a box that must be inside a random crop
_CROPS = 10  # tries before the whole image is taken


@dataclass(frozen=True)
class Augmentation:
    """scale: factor range on top of what fits the canvas (above 1: a random crop); flip: chance of
    a mirror image; colour: largest relative change of brightness, contrast and saturation."""

    scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.5
    colour: float = 0.0


class PseudoSamples:
    """The images of a split that have pseudo boxes; images without are left out of training.

    pgt: COCO dictionary (`annotations` with `image_id`, `category_id`, `bbox` xywh); images: the
    split it was made for. groups: which canvas of a scale each sample is shown in. max_boxes: the
    padded length G, the largest count rounded up to a multiple of 8, so no box is cut off.
    Raises `BadInput` when the dictionary does not belong to the split or has no box.
    """

    def __init__(
        self,
        pgt: Mapping,
        images: TagSplit,
        scales: tuple[Scale, ...],
        augmentation: Augmentation,
    ):
        truth = _read(pgt, images)
        self._records = [record for record in images.records if record.image_id in truth]
        if not self._records:
            hint = "lower the score threshold of the pseudo ground truth or train the MIL longer"
            raise BadInput("pgt.json", "has no box for any image of the split", hint)
        self._truth = [truth[record.image_id] for record in self._records]
        self._augmentation = augmentation
        check_scales(scales)
        self.scales = scales
        self.groups = [shape_group(record, scales) for record in self._records]
        most = max(len(labels) for _, labels in self._truth)
        self.max_boxes = -(-most // 8) * 8

    def draw(self, group: int, rng: np.random.Generator) -> Canvas:
        """The canvas of a batch: that of its group at a random scale."""
        return self.scales[int(rng.integers(len(self.scales)))][group]

    def __len__(self) -> int:
        return len(self._records)

    def __call__(self, index: int, canvas: Canvas, rng: np.random.Generator) -> dict:
        """One sample: `image` uint8 `[H, W, 3]`, `size` float32 `[2]` (height, width) within the
        canvas, `boxes` float32 `[G, 4]`, `labels` int32 `[G]`, `valid` bool `[G]`, `image_id`."""
        record, (boxes, labels) = self._records[index], self._truth[index]
        image = load_image(record.path)
        image, boxes, inside, size = augment(image, boxes, canvas, rng, self._augmentation)
        boxes, valid = pad_boxes(boxes[inside], self.max_boxes)
        return {
            "image": image,
            "size": np.asarray(size, np.float32),
            "boxes": boxes,
            "labels": pad_boxes(labels[inside], self.max_boxes)[0],
            "valid": valid,
            "image_id": np.int64(record.image_id),
        }


def augment(
    image: np.ndarray,
    boxes: np.ndarray,
    canvas: Canvas,
    rng: np.random.Generator,
    settings: Augmentation,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Canvas]:
    """Resizes (jittered), crops or pads to the canvas, mirrors and recolours.

    image uint8 `[h, w, 3]`, boxes `[n, 4]`. Returns (image uint8 `[H, W, 3]`, zero outside; boxes
    `[n, 4]` cut to what is visible; which of them are still objects, bool `[n]`; (height, width) of
    the visible part, in the top left corner). A crop in which no box is left is drawn again.
    """
    height, width = image.shape[:2]
    fit = min(canvas[0] / height, canvas[1] / width)
    for attempt in range(_CROPS + 1):
        scale = fit * rng.uniform(*settings.scale) if attempt < _CROPS else fit
        new = max(1, round(height * scale)), max(1, round(width * scale))
        seen = min(new[0], canvas[0]), min(new[1], canvas[1])
        y, x = (int(rng.integers(0, a - b + 1)) for a, b in zip(new, seen, strict=True))
        factor = np.asarray([new[1] / width, new[0] / height] * 2, np.float32)
        moved = boxes * factor - np.asarray([x, y, x, y], np.float32)
        cut = clip(moved, seen[1], seen[0])
        sides = np.minimum(cut[:, 2] - cut[:, 0], cut[:, 3] - cut[:, 1])
        inside = (area(cut) >= _MIN_VISIBLE * area(moved)) & (sides >= _MIN_SIDE)
        if inside.any():
            break
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, (new[1], new[0]), interpolation=how)
    visible = resized[y : y + seen[0], x : x + seen[1]]
    if rng.random() < settings.flip:
        visible, cut = visible[:, ::-1], flip(cut, np.float32(seen[1]))
    out = np.zeros((*canvas, 3), np.uint8)
    out[: seen[0], : seen[1]] = recolour(visible, rng, settings.colour)
    return out, cut, inside, seen


def recolour(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Brightness, contrast and saturation each changed by up to `strength` (relative); uint8."""
    if strength == 0:
        return image
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    pixels = image.astype(np.float32)
    grey = pixels @ np.asarray([0.299, 0.587, 0.114], np.float32)
    pixels = saturation * pixels + (1 - saturation) * grey[..., None]
    pixels = brightness * (contrast * pixels + (1 - contrast) * grey.mean())
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8)


def _read(pgt: Mapping, images: TagSplit) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Image id -> (boxes float32 `[n, 4]`, labels int32 `[n]`), only images with boxes."""
    class_of = {category: index for index, category in enumerate(images.category_ids)}
    records: dict[int, TagRecord] = {record.image_id: record for record in images.records}
    found: dict[int, list] = {}
    for annotation in pgt["annotations"]:
        image_id, category = annotation["image_id"], annotation["category_id"]
        if image_id not in records or category not in class_of:
            problem = f"image {image_id}, category {category} is not of {images.dataset}"
            raise BadInput(Path("pgt.json"), problem, "make the pseudo ground truth again")
        record = records[image_id]
        box = clip(
            from_xywh(np.asarray(annotation["bbox"], np.float32)), record.width, record.height
        )
        if min(box[2] - box[0], box[3] - box[1]) > 0:
            found.setdefault(image_id, []).append((box, class_of[category]))
    return {
        image_id: (np.stack([box for box, _ in rows]), np.asarray([c for _, c in rows], np.int32))
        for image_id, rows in found.items()
    }
