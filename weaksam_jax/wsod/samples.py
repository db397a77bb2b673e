"""Samples of the MIL detector: images (or cached maps of a frozen backbone), proposals, tags."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from weaksam_jax.boxes import clip, flip
from weaksam_jax.data.batches import Canvas, choose_canvas, pad_boxes, resize_to_canvas
from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.store import UNRATED, read_proposals
from weaksam_jax.errors import BadInput
from weaksam_jax.wsod.clue_evidence import clue_evidence

if TYPE_CHECKING:
    from weaksam_jax.wsod.features import FeatureCache

# One scale: a canvas for each shape of image (say landscape and portrait), in a fixed order.
Scale = tuple[Canvas, ...]
MAX_CACHED_PIXELS = 60_000_000  # decoded images are kept in memory up to this many pixels


@dataclass(frozen=True)
class View:
    """How an image is shown to the network: index of the scale, mirrored or not."""

    scale: int
    mirrored: bool


def load_boxes(
    root: str | Path, split: TagSplit, record: TagRecord, min_side: float
) -> tuple[np.ndarray, np.ndarray]:
    """(boxes float32 `[n, 4]`, quality float32 `[n]`) of the proposals of an image.

    Boxes are cut to the image, have sides >= min_side pixels and no doubles. Sources take turns,
    each best first, so that a cut to any length keeps the best of all of them. The whole image
    stands in when nothing is left (a mean over no proposals is NaN). quality: the mean of SAM's
    predicted IoU and stability; 0 for selective search and imported boxes, which have neither.
    """
    proposals = read_proposals(root, split.split, record.image_id)
    place = np.zeros(len(proposals), np.int64)
    for source in np.unique(proposals.source):
        own = proposals.source == source
        place[own] = np.arange(own.sum())
    proposals = proposals.select(np.argsort(place, kind="stable"))
    boxes = clip(proposals.boxes, np.float32(record.width), np.float32(record.height))
    large = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= min_side).all(1))
    _, first = np.unique(np.round(boxes[large]), axis=0, return_index=True)
    kept = large[np.sort(first)]
    if not len(kept):
        whole = np.asarray([[0, 0, record.width, record.height]], np.float32)
        return whole, np.zeros(1, np.float32)
    quality = (proposals.predicted_iou + proposals.stability) / 2
    quality[np.isin(proposals.source, UNRATED)] = 0
    return boxes[kept], quality[kept].astype(np.float32)


def shape_group(record: TagRecord, scales: Sequence[Scale]) -> int:
    """Index of the canvas (landscape, portrait, ...) that fits the image best."""
    return scales[0].index(choose_canvas(record.width, record.height, scales[0]))


class MilSamples:
    """`samples(index, (group, scale), rng)` -> one padded training sample.

    `image` uint8 `[H, W, 3]` or cached maps float16 `map0`, `map1`, ... `[h, w, F]`, `size` float32
    `[2]` (height, width inside the canvas, input pixels), `boxes` float32 `[N, 4]` (input pixels),
    `prior` float32 `[N, C]`, `valid` bool `[N]`, `tags` bool `[C]`, `image_id`. More than N
    proposals: N random ones.

    prior: `evidence` times a proposal's quality, plus `clue_evidence` times what the clues stored
    in `clues_root` say of it for each class.
    """

    def __init__(
        self,
        split: TagSplit,
        proposals_root: str | Path,
        settings,
        clues_root: str | Path | None = None,
    ):
        self.split, self.settings = split, settings
        self.features: FeatureCache | None = None  # set it for a frozen backbone
        loaded = [
            load_boxes(proposals_root, split, record, settings.min_side)
            for record in tqdm(split.records, "proposals", unit="images")
        ]
        self.boxes, self.quality = map(list, zip(*loaded, strict=True))
        self.clues: list[np.ndarray] | None = None
        if settings.clue_evidence or settings.clue_power:
            if clues_root is None:
                cure = "give clues_root, or set clue_evidence and clue_power to 0"
                raise BadInput("the MIL detector", "has no clues", cure)
            self.clues = [
                clue_evidence(clues_root, split.split, record, boxes, len(split.classes))
                for record, boxes in zip(split.records, self.boxes, strict=True)
            ]
        self.groups = [shape_group(record, settings.scales) for record in split.records]
        pixels = sum(record.width * record.height for record in split.records)
        self._cache: dict[int, np.ndarray] | None = {} if pixels <= MAX_CACHED_PIXELS else None

    def draw(self, group: int, rng: np.random.Generator) -> tuple[int, int]:
        """The scale of a batch."""
        return group, int(rng.integers(len(self.settings.scales)))

    def __call__(self, index: int, canvas: tuple[int, int], rng: np.random.Generator) -> dict:
        record, count = self.split.records[index], len(self.boxes[index])
        most = self.settings.max_proposals
        chosen = slice(None) if count <= most else np.sort(rng.permutation(count)[:most])
        mirrored = bool(rng.random() < 0.5)
        shrink = rng.uniform(*self.settings.jitter) if self.features is None else 1.0
        sample = self.show(index, chosen, View(canvas[1], mirrored), shrink)
        if self.features is None:
            image = jitter_colour(sample["image"], self.settings.colour, rng)
            sample["image"] = hide_patches(image, self.settings.hide, rng)
        tags = np.zeros(len(self.split.classes), bool)
        tags[list(record.tags)] = True
        return sample | {"tags": tags, "image_id": np.int64(record.image_id)}

    def show(self, index: int, chosen: slice | np.ndarray, view: View, shrink: float = 1.0) -> dict:
        """`image`, `size`, `boxes`, `prior`, `valid` of one image in one view.

        chosen: which of the image's proposals; shrink: part of the fit.
        """
        record, boxes = self.split.records[index], self.boxes[index][chosen]
        canvas = self.settings.scales[view.scale][self.groups[index]]
        if self.features is None:
            fit = min(canvas[0] / record.height, canvas[1] / record.width)
            image, boxes, size = resize_to_canvas(
                self._image(index), boxes, canvas, scale=shrink * fit, flip=view.mirrored
            )
        else:
            maps = self.features.read(record.image_id, view)
            size = fitted_size(record, canvas)
            boxes = place_boxes(boxes, record, size, view.mirrored)
        padded, valid = pad_boxes(boxes.astype(np.float32), self.settings.max_proposals)
        return {
            **({"image": image} if self.features is None else maps),
            "size": np.asarray(size, np.float32),
            "boxes": padded,
            "prior": pad_boxes(self._prior(index)[chosen], self.settings.max_proposals)[0],
            "valid": valid,
        }

    def _prior(self, index: int) -> np.ndarray:
        quality = self.settings.evidence * self.quality[index][:, None]
        prior = np.repeat(quality.astype(np.float32), len(self.split.classes), axis=1)
        if self.clues is not None:
            prior += np.float32(self.settings.clue_evidence) * self.clues[index]
        return prior

    def clue_factors(self, index: int) -> np.ndarray:
        """What the clues multiply the scores of an image with: float32 `[N, C]`, or 1."""
        most = self.settings.max_proposals
        if self.clues is None:
            return np.ones((most, len(self.split.classes)), np.float32)
        return pad_boxes(self.clues[index] ** self.settings.clue_power, most)[0]

    def _image(self, index: int) -> np.ndarray:
        if self._cache is None:
            return load_image(self.split.records[index].path)
        if index not in self._cache:
            self._cache[index] = load_image(self.split.records[index].path)
        return self._cache[index]


def fitted_size(record: TagRecord, canvas: Canvas) -> tuple[int, int]:
    """(height, width) of the image in the canvas, as `resize_to_canvas` makes it."""
    scale = min(canvas[0] / record.height, canvas[1] / record.width)
    return max(1, round(record.height * scale)), max(1, round(record.width * scale))


def place_boxes(
    boxes: np.ndarray, record: TagRecord, size: tuple[int, int], mirrored: bool
) -> np.ndarray:
    """Boxes of the original image in a view of that (height, width)."""
    factors = np.asarray([size[1] / record.width, size[0] / record.height] * 2, np.float32)
    boxes = boxes * factors
    return flip(boxes, np.float32(size[1])) if mirrored else boxes


def restore_boxes(
    boxes: np.ndarray, record: TagRecord, size: Sequence[float], mirrored: bool
) -> np.ndarray:
    """The inverse of `place_boxes` for boxes `[..., 4]`."""
    boxes = flip(boxes, np.float32(size[1])) if mirrored else boxes
    factors = np.asarray([size[1] / record.width, size[0] / record.height] * 2, np.float32)
    return boxes / factors


def jitter_colour(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Random gain of each channel and random brightness; the padding (0) stays 0."""
    gain = rng.uniform(1 - amount, 1 + amount, 3).astype(np.float32)
    shifted = image * gain + np.float32(rng.uniform(-amount, amount) * 64) * (image > 0)
    return np.clip(shifted, 0, 255).astype(np.uint8)


def hide_patches(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The image with about `share` of its 24-pixel patches set to the mean grey.

    Hide-and-Seek (Singh and Lee 2017): with the telling part out of sight the rest must tell.
    """
    height, width = image.shape[:2]
    hidden = rng.random((height // 24 + 2, width // 24 + 2)) < share
    top, left = rng.integers(0, 24, 2)
    rows, columns = (np.arange(height) + top) // 24, (np.arange(width) + left) // 24
    return np.where(hidden[rows][:, columns, None], np.uint8(127), image)
