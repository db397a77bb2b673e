"""Samples of the MIL detector: images (or cached maps of a frozen backbone), proposals, tags."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from weaksam_jax.boxes import clip
from weaksam_jax.data.augment import hide_patches, jitter_colour, light_noise
from weaksam_jax.data.batches import pad_boxes, resize_to_canvas
from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.scales import Scale, check_scales, shape_group
from weaksam_jax.data.store import UNRATED, read_proposals
from weaksam_jax.data.views import View, fitted_size, place_boxes
from weaksam_jax.detectors.mil.evidence import clue_evidence
from weaksam_jax.errors import BadInput

if TYPE_CHECKING:
    from weaksam_jax.detectors.mil.features import FeatureCache

MAX_CACHED_PIXELS = 60_000_000  # decoded images are kept in memory up to this many pixels


def load_boxes(
    root: str | Path, split: TagSplit, record: TagRecord, min_side: float
) -> tuple[np.ndarray, np.ndarray]:
    """(boxes float32 `[n, 4]`, quality float32 `[n]`) of the proposals of an image.

    Boxes are cut to the image, have sides >= min_side pixels and no doubles (equal when rounded to
    pixels). Sources take turns, each best first, so that a cut to any length keeps the best of all
    of them. The whole image stands in when nothing is left (a mean over no proposals is NaN).
    quality: the mean of SAM's predicted IoU and stability; 0 for selective search and imported
    boxes, which have neither.

    This is the release's filter, at the original resolution and once for training and test: its
    least side, 20 for VOC and 2 for COCO, counts the last pixel (`xmax - xmin + 1`), and so do
    continuous corners (`x2 - x1`), so min_side is the same number.
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


class MilSamples:
    """`samples(index, (group, scale), rng)` -> one padded training sample.

    `image` uint8 `[H, W, 3]` or cached maps float16 `map0`, `map1`, ... `[h, w, F]`, `size` float32
    `[2]` (height, width inside the canvas, input pixels), `boxes` float32 `[N, 4]` (input pixels),
    `prior` float32 `[N, C]`, `valid` bool `[N]`, `tags` bool `[C]`, `image_id`.

    N, `padded`, is the smallest of 256, 512, 1024, ... that holds the proposals of every image of
    the split, but at most `max_proposals`. An image with more is trained on N random ones at a time
    and tested on its first N. (The paper's code takes all: set `max_proposals` high, which costs
    nothing where images have fewer.)

    prior: `evidence` times a proposal's quality, plus `clue_evidence` times what the clues stored
    in `clues_root` say of it for each class.
    """

    def __init__(
        self,
        split: TagSplit,
        proposals_root: str | Path,
        settings,
        clues_root: str | Path | None = None,
        scales: tuple[Scale, ...] | None = None,
    ):
        """scales: those of the views; None: the settings' scales of training."""
        self.split, self.settings, self.scales = split, settings, scales or settings.scales
        check_scales(self.scales)
        self.features: FeatureCache | None = None  # set it for a frozen backbone
        loaded = [
            load_boxes(proposals_root, split, record, settings.min_side)
            for record in tqdm(split.records, "proposals", unit="images")
        ]
        self.boxes, self.quality = map(list, zip(*loaded, strict=True))
        most = max(map(len, self.boxes))
        self.padded = min(settings.max_proposals, 256 * 2 ** max(0, (most - 1).bit_length() - 8))
        self.clues: list[np.ndarray] | None = None
        if settings.clue_evidence or settings.clue_power:
            if clues_root is None:
                hint = "give clues_root, or set clue_evidence and clue_power to 0"
                raise BadInput("the MIL detector", "has no clues", hint)
            self.clues = [
                clue_evidence(clues_root, split.split, record, boxes, len(split.classes))
                for record, boxes in zip(split.records, self.boxes, strict=True)
            ]
        self.groups = [shape_group(record, self.scales) for record in split.records]
        pixels = sum(record.width * record.height for record in split.records)
        self._cache: dict[int, np.ndarray] | None = {} if pixels <= MAX_CACHED_PIXELS else None

    def draw(self, group: int, rng: np.random.Generator) -> tuple[int, int]:
        """The scale of a batch."""
        return group, int(rng.integers(len(self.scales)))

    def __call__(self, index: int, canvas: tuple[int, int], rng: np.random.Generator) -> dict:
        record, count = self.split.records[index], len(self.boxes[index])
        most = self.padded
        chosen = slice(None) if count <= most else np.sort(rng.permutation(count)[:most])
        mirrored = bool(rng.random() < 0.5)
        shrink = rng.uniform(*self.settings.jitter) if self.features is None else 1.0
        sample = self.show(index, chosen, View(canvas[1], mirrored), shrink)
        if self.features is None:
            image = jitter_colour(sample["image"], self.settings.colour, rng)
            if self.settings.lighting:
                height, width = sample["size"].astype(int)
                inside = image[:height, :width]  # the padding stays 0
                inside[:] = light_noise(inside, self.settings.lighting, rng)
            sample["image"] = hide_patches(image, self.settings.hide, rng)
        tags = np.zeros(len(self.split.classes), bool)
        tags[list(record.tags)] = True
        if record.uncertain:  # teaches nothing: every loss passes over an image without valid boxes
            sample["valid"] = np.zeros_like(sample["valid"])
        return sample | {"tags": tags, "image_id": np.int64(record.image_id)}

    def show(
        self,
        index: int,
        chosen: slice | np.ndarray,
        view: View,
        shrink: float = 1.0,
        image: np.ndarray | None = None,
    ) -> dict:
        """`image`, `size`, `boxes`, `prior`, `valid` of one image in one view.

        chosen: which of the image's proposals; shrink: part of the fit; image: what `image(index)`
        returned, for a caller that shows it several times.
        """
        record, boxes = self.split.records[index], self.boxes[index][chosen]
        canvas = self.scales[view.scale][self.groups[index]]
        if self.features is None:
            fit = min(canvas[0] / record.height, canvas[1] / record.width)
            image = self.image(index) if image is None else image
            image, boxes, size = resize_to_canvas(
                image, boxes, canvas, scale=shrink * fit, flip=view.mirrored
            )
        else:
            maps = self.features.read(record.image_id, view)
            size = fitted_size(record, canvas)
            boxes = place_boxes(boxes, record, size, view.mirrored)
        padded, valid = pad_boxes(boxes.astype(np.float32), self.padded)
        return {
            **({"image": image} if self.features is None else maps),
            "size": np.asarray(size, np.float32),
            "boxes": padded,
            "prior": pad_boxes(self._prior(index)[chosen], self.padded)[0],
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
        if self.clues is None:
            return np.ones((self.padded, len(self.split.classes)), np.float32)
        return pad_boxes(self.clues[index] ** self.settings.clue_power, self.padded)[0]

    def image(self, index: int) -> np.ndarray:
        """The decoded image uint8 `[h, w, 3]`; those of a small split stay in memory."""
        if self._cache is None:
            return load_image(self.split.records[index].path)
        if index not in self._cache:
            self._cache[index] = load_image(self.split.records[index].path)
        return self._cache[index]
