"""Samples of the MIL detector: images (or cached maps of a frozen backbone), proposals, tags."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from weaksam_jax.boxes import clip
from weaksam_jax.data.augment import AugmentConfig, hide_patches, jitter_channels, light_noise
from weaksam_jax.data.images import load_image
from weaksam_jax.data.padding import pad_boxes, resize_and_pad
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.scales import Scale, bucket_of, check_scales, shown_at
from weaksam_jax.data.store import UNRATED, read_proposals
from weaksam_jax.data.views import View, fitted_size, place_boxes, views_of
from weaksam_jax.detectors.mil.config import MilConfig
from weaksam_jax.detectors.mil.evidence import clue_evidence
from weaksam_jax.detectors.mil.features import FeatureCache
from weaksam_jax.errors import BadInput
from weaksam_jax.progress import progress_bar, say

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

    This is the filter of MIST's official code, at the original resolution and once for training and
    test: its least side, 20 for VOC and 2 for COCO, counts the last pixel (`xmax - xmin + 1`), and
    so do continuous corners (`x2 - x1`), so min_side is the same number.
    """
    proposals = read_proposals(root, split.split, record)
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


def padded_count(most: int) -> int:
    """The number of places for up to `most` proposals: 256 or 384, times a power of two."""
    power = 256 * 2 ** max(0, (most - 1).bit_length() - 8)
    between = power // 4 * 3
    return between if 256 < most <= between else power


class MilSamples:
    """`samples(index, (bucket, scale), rng)` -> one padded training sample.

    `image` uint8 `[H, W, 3]` or cached maps float16 `map0`, `map1`, ... `[h, w, F]`, `size` float32
    `[2]` (height, width inside the padded size, input pixels), `boxes` float32 `[N, 4]` (input
    pixels), `prior` float32 `[N, C]`, `valid` bool `[N]`, `tags` bool `[C]`, `image_id`.

    N, `padded`, is the smallest of 256, 384, 512, 768, 1024, ... that holds the proposals of every
    image of the split, but at most `max_proposals`. An image with more is trained on N random ones
    at a time and tested on its first N. (The official code takes all: set `max_proposals` high,
    which costs nothing where images have fewer.)

    prior: `evidence` times a proposal's quality, plus `clue_evidence` times what the clues stored
    in `clues_root` say of it for each class.
    """

    def __init__(
        self,
        split: TagSplit,
        proposals_root: str | Path,
        config: MilConfig,
        *,
        clues_root: str | Path | None = None,
        scales: tuple[Scale, ...] | None = None,
    ):
        """scales: those of the views [those of training]."""
        self.split, self.config, self.scales = split, config, scales or config.data.scales
        check_scales(self.scales)
        self.features: FeatureCache | None = None  # set it for cached maps
        loaded = [
            load_boxes(proposals_root, split, record, min_side=config.data.min_side)
            for record in progress_bar(split.records, "proposals")
        ]
        self.boxes, self.quality = map(list, zip(*loaded, strict=True))
        self.padded = min(config.data.max_proposals, padded_count(max(map(len, self.boxes))))
        self.clues = self._read_clues(clues_root)
        self.buckets = [bucket_of(record, self.scales) for record in split.records]
        pixels = sum(record.width * record.height for record in split.records)
        self._cache: dict[int, np.ndarray] | None = {} if pixels <= MAX_CACHED_PIXELS else None

    def _read_clues(self, root: str | Path | None) -> list[np.ndarray] | None:
        if not (self.config.data.clue_evidence or self.config.test.clue_power):
            return None
        if root is None:
            hint = "give clues_root, or set data.clue_evidence and test.clue_power to 0"
            raise BadInput("the MIL detector", "has no clues", hint)
        split, count = self.split, len(self.split.classes)
        return [
            clue_evidence(root, split.split, record, boxes=boxes, classes=count)
            for record, boxes in zip(split.records, self.boxes, strict=True)
        ]

    def draw(self, bucket: int, rng: np.random.Generator) -> tuple[int, int]:
        """The scale of a batch."""
        return bucket, int(rng.integers(len(self.scales)))

    def example(self) -> dict[str, np.ndarray]:
        """A batch of one image, for `init`: its shapes count and not its values."""
        shown = self.show(0, slice(self.padded), View(0, False))
        return {name: value[None] for name, value in shown.items()}

    def __call__(self, index: int, drawn: tuple[int, int], rng: np.random.Generator) -> dict:
        record, count, augment = self.split.records[index], len(self.boxes[index]), self._augment
        most = self.padded
        chosen = slice(None) if count <= most else np.sort(rng.permutation(count)[:most])
        flipped = bool(rng.random() < augment.flip)
        shrink = rng.uniform(*augment.scale) if self.features is None else 1.0
        sample = self.show(index, chosen, View(drawn[1], flipped), shrink=shrink)
        if self.features is None:
            sample["image"] = self._recolour(sample["image"], sample["size"], rng)
        tags = np.zeros(len(self.split.classes), bool)
        tags[list(record.tags)] = True
        if record.uncertain:  # teaches nothing: every loss passes over an image without valid boxes
            sample["valid"] = np.zeros_like(sample["valid"])
        return sample | {"tags": tags, "image_id": np.int64(record.image_id)}

    @property
    def _augment(self) -> AugmentConfig:
        return self.config.data.augment

    def _recolour(self, image: np.ndarray, size: np.ndarray, rng: np.random.Generator):
        image = jitter_channels(image, self._augment.channel_gain, rng)
        if self._augment.lighting:
            height, width = size.astype(int)
            inside = image[:height, :width]  # the padding stays 0
            inside[:] = light_noise(inside, self._augment.lighting, rng)
        return hide_patches(image, self._augment.hide, rng)

    def show(
        self,
        index: int,
        chosen: slice | np.ndarray,
        view: View,
        *,
        shrink: float = 1.0,
        image: np.ndarray | None = None,
    ) -> dict:
        """`image`, `size`, `boxes`, `prior`, `valid` of one image in one view.

        chosen: which of the image's proposals; shrink: part of the fit; image: what `image(index)`
        returned, for a caller that shows it several times.
        """
        record, boxes = self.split.records[index], self.boxes[index][chosen]
        shown = shown_at(self.scales[view.scale], self.buckets[index])
        if self.features is None:
            scale = shrink * shown.fit(record.height, record.width)
            image = self.image(index) if image is None else image
            image, boxes, size = resize_and_pad(
                image, boxes, shown.padded, scale=scale, flip=view.flip
            )
        else:
            maps = self.features.read(record.image_id, view)
            size = fitted_size(record, shown)
            boxes = place_boxes(boxes, record, size, flipped=view.flip)
        boxes, valid = pad_boxes(boxes.astype(np.float32), self.padded)
        return {
            **({"image": image} if self.features is None else maps),
            "size": np.asarray(size, np.float32),
            "boxes": boxes,
            "prior": pad_boxes(self._prior(index)[chosen], self.padded)[0],
            "valid": valid,
        }

    def _prior(self, index: int) -> np.ndarray:
        quality = self.config.model.evidence * self.quality[index][:, None]
        prior = np.repeat(quality.astype(np.float32), len(self.split.classes), axis=1)
        if self.clues is not None:
            prior += np.float32(self.config.data.clue_evidence) * self.clues[index]
        return prior

    def clue_factors(self, index: int) -> np.ndarray:
        """What the clues multiply the scores of an image with: float32 `[N, C]`, or 1."""
        if self.clues is None:
            return np.ones((self.padded, len(self.split.classes)), np.float32)
        return pad_boxes(self.clues[index] ** self.config.test.clue_power, self.padded)[0]

    def image(self, index: int) -> np.ndarray:
        """The decoded image uint8 `[h, w, 3]`; those of a small split stay in memory."""
        if self._cache is None:
            return load_image(self.split.records[index].path)
        if index not in self._cache:
            self._cache[index] = load_image(self.split.records[index].path)
        return self._cache[index]


class MilViews:
    """The images of a split with their proposals as test batches (`weaksam_jax.engine.predict`)."""

    def __init__(self, samples: MilSamples):
        """samples: at the scales of the test, with cached maps where the config says so."""
        self.samples, self.split, self.buckets = samples, samples.split, samples.buckets
        self.batch_size = samples.config.test.batch_size

    def __call__(self, indices: Sequence[int], pool: Executor) -> Iterator[dict[str, np.ndarray]]:
        """A batch of these images for each view: see `MilSamples.show`, and `original`, `flipped`
        (as `weaksam_jax.data.views.ImageViews`), `clue_factor` float32 `[B, N, C]`."""
        samples = self.samples
        images = [None] * len(indices)
        if samples.features is None:
            images = list(pool.map(samples.image, indices))
        records = [samples.split.records[i] for i in indices]
        shared = {
            "original": np.asarray([[r.height, r.width] for r in records], np.float32),
            "clue_factor": np.stack([samples.clue_factors(i) for i in indices]),
        }
        for view in views_of(samples.scales, samples.config.test.tta_flip):

            def show(index: int, image, view: View = view) -> dict:
                return samples.show(index, slice(samples.padded), view, image=image)

            shown = list(pool.map(show, indices, images))
            batch = {name: np.stack([one[name] for one in shown]) for name in shown[0]}
            yield batch | shared | {"flipped": np.full(len(records), view.flip)}


def tta_samples(
    split: TagSplit,
    proposals_root: str | Path,
    config: MilConfig,
    clues_root: str | Path | None = None,
) -> MilSamples:
    """Samples at the scales of the test; a line on stderr when images have more proposals than are
    looked at."""
    scales = config.test.tta_scales or config.data.scales
    samples = MilSamples(split, proposals_root, config, clues_root=clues_root, scales=scales)
    counts = np.asarray([len(boxes) for boxes in samples.boxes])
    over = counts > samples.padded
    if over.any():
        left_out = int((counts - samples.padded)[over].sum())
        problem = f"{over.sum()} of {len(counts)} images have more than {samples.padded} proposals"
        hint = f"raise data.max_proposals to {counts.max()} to look at all"
        say(f"warning: {problem}, {left_out} are left out; {hint}")
    return samples
