"""Batches for training: a checkpointable Grain iterator in which batch number b is a pure function
of (seed, b). Imports neither jax nor torch.

All images of a batch share one padded size (a fixed height and width), so a compiled step sees few
shapes: samples lie in buckets (say "landscape", "portrait"), a batch is taken from one bucket, and
the padded size (the training scale) is drawn once per batch.
"""

import functools
from collections.abc import Callable, Hashable, Sequence

import cv2
import grain
import numpy as np

from weaksam_jax.boxes import flip as flip_boxes
from weaksam_jax.data.scales import PaddedSize
from weaksam_jax.errors import BadInput

Sample = dict[str, np.ndarray]


class Batches:
    """Random access to the batches of an endless training run; see `make_batches`."""

    def __init__(self, sample_fn, buckets, batch_size, seed, draw, process=(0, 1)):
        self._sample_fn, self._draw = sample_fn, draw
        self._size, self._seed, self._process = batch_size, seed, process
        members: dict[Hashable, list[int]] = {}
        for index, bucket in enumerate(buckets):
            members.setdefault(bucket, []).append(index)
        # A bucket fills a whole number of batches per epoch, to the nearest and at least one.
        self._buckets = [
            (bucket, np.asarray(index), max(1, round(len(index) / batch_size)))
            for bucket, index in members.items()
        ]
        self.batches_per_epoch = sum(count for _, _, count in self._buckets)
        self._epoch = functools.lru_cache(2)(self._make_epoch)

    def __len__(self) -> int:
        return 2**40  # endless for every practical purpose

    def __getitem__(self, batch_index: int) -> Sample:
        epoch, position = divmod(int(batch_index), self.batches_per_epoch)
        bucket, indices = self._epoch(epoch)[position]
        drawn = self._draw(bucket, np.random.default_rng((self._seed, 1, batch_index)))
        process, processes = self._process
        share = len(indices) // processes
        samples = []
        for slot in range(process * share, (process + 1) * share):
            rng = np.random.default_rng((self._seed, 2, batch_index, slot))
            samples.append(self._sample_fn(int(indices[slot]), drawn, rng))
        return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}

    def _make_epoch(self, epoch: int) -> list[tuple[Hashable, np.ndarray]]:
        """The batches of one epoch in order: (bucket, indices `[batch_size]`)."""
        rng = np.random.default_rng((self._seed, 0, epoch))
        batches = []
        for bucket, members, count in self._buckets:
            order = np.resize(rng.permutation(members), count * self._size)  # repeats when too few
            batches += [(bucket, part) for part in np.split(order, count)]
        return [batches[i] for i in rng.permutation(len(batches))]


def make_batches(
    sample_fn: Callable[[int, object, np.random.Generator], Sample],
    buckets: Sequence[Hashable],
    batch_size: int,
    seed: int,
    *,
    draw: Callable[[Hashable, np.random.Generator], object] = lambda bucket, rng: bucket,
    threads: int = 2,
    prefetch: int = 4,
    process: tuple[int, int] = (0, 1),
) -> grain.DatasetIterator:
    """An endless, shuffled Grain iterator of batches; `get_state` / `set_state` are exact.

    sample_fn(index, drawn, rng) -> dictionary of arrays (or scalars) whose shapes depend on
    `drawn` alone; they are stacked to `[batch_size, ...]`. Put `image_id` (int64) in, so that
    `weaksam_jax.engine.loop.train` can name the images of a bad batch. `rng` is this sample's own:
    it depends on (seed, batch, slot) and not on threads or on where the run was resumed.
    buckets: the bucket of each of the N samples; a batch never mixes them. draw(bucket, rng), once
    per batch, gives `drawn` (default: the bucket itself). Within an epoch a bucket of n
    samples gives round(n / batch_size) batches, at least one, without repetition while it lasts.
    process: (index, count) of this process; each takes its contiguous share of every batch, and
    the iterator's state is the same in all of them. Raises `BadInput` when the shares are not
    equal.

    Threads build whole batches ahead (cv2 releases the interpreter lock); threads=0: in line.
    """
    if not buckets:
        raise ValueError("no samples")  # readers refuse an empty split long before
    if batch_size % process[1]:
        problem = f"{batch_size} images do not divide among {process[1]} processes"
        raise BadInput("batch_size", problem, f"choose a multiple of {process[1]}")
    source = Batches(sample_fn, list(buckets), batch_size, seed, draw, process)
    ahead = prefetch if threads else 0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def resize_and_pad(
    image: np.ndarray,
    boxes: np.ndarray,
    padded_size: PaddedSize,
    *,
    scale: float | None = None,
    flip: bool = False,
) -> tuple[np.ndarray, np.ndarray, PaddedSize]:
    """Image `[h, w, c]` and boxes `[n, 4]` resized into the top left corner of a padded size.

    scale: the factor; None: the largest that fits. It is cut to what fits. Area averaging when
    shrinking, bilinear when growing. Returns (image `[H, W, c]` of the same dtype, zero outside,
    boxes float32 `[n, 4]`, (height, width) of the resized image). Coordinates in it are
    divided by (width / w, height / h) of that last size to get back to the original image.
    """
    height, width = image.shape[:2]
    fit = min(padded_size[0] / height, padded_size[1] / width)
    scale = fit if scale is None else min(scale, fit)
    new_height, new_width = (max(1, round(side * scale)) for side in (height, width))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, (new_width, new_height), interpolation=how)
    resized = resized.reshape(new_height, new_width, image.shape[2])  # cv2 drops a single channel
    factors = np.asarray([new_width / width, new_height / height] * 2, np.float32)
    boxes = boxes.astype(np.float32) * factors
    if flip:
        resized, boxes = resized[:, ::-1], flip_boxes(boxes, np.float32(new_width))
    padded = np.zeros((*padded_size, image.shape[2]), image.dtype)
    padded[:new_height, :new_width] = resized
    return padded, boxes, (new_height, new_width)


def pad_boxes(boxes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows `[n, ...]` cut or zero-padded to `[length, ...]`, and valid bool `[length]`.

    Works for boxes `[n, 4]` and for what goes with them (labels `[n]`, scores `[n]`).
    """
    kept = boxes[:length]
    padded = np.zeros((length, *boxes.shape[1:]), boxes.dtype)
    padded[: len(kept)] = kept
    return padded, np.arange(length) < len(kept)
