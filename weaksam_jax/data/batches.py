"""Batches for training: a checkpointable Grain iterator in which batch number b is a pure function
of (seed, b). Imports neither jax nor torch.

All images of a batch share one padded size (a fixed height and width), so a compiled step sees few
shapes: samples lie in buckets (say "landscape", "portrait"), a batch is taken from one bucket, and
the padded size (the training scale) is drawn once per batch.
"""

import functools
from collections.abc import Callable, Hashable, Sequence

import grain
import numpy as np

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
    source = Batches(sample_fn, list(buckets), batch_size, seed=seed, draw=draw, process=process)
    ahead = prefetch if threads else 0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))
