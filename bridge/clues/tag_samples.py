"""Augmented training samples from a split with tags, reproducible image by image."""

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bridge.clues.weaktr import to_tensor
from bridge.runtime import torchvision_ops  # noqa: F401  (makes timm's torchvision importable)
from weaksam_jax.data.augment import light_augment
from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagSplit
from weaksam_jax.errors import BadInput

# Decoded images are kept in memory while all of them have at most this many pixels.
CACHED_PIXELS = 60_000_000


class TagSamples(Dataset):
    """Crops and tags; `samples[epoch, index]` depends on (seed, epoch, index) and nothing else.

    crop: side in pixels. min_scale: least share of the area in a crop. augment: "light" (crop,
    mirror, colour jitter) or "timm" (the published recipe: RandAugment, random erasing). jitter:
    strength of the light colour jitter. An item is (float32 `[3, crop, crop]`, float32 `[C]`).
    """

    def __init__(
        self,
        train: TagSplit,
        *,
        crop: int,
        min_scale: float,
        augment: str,
        jitter: float,
        seed: int,
    ):
        self.train, self.crop, self.min_scale, self.seed = train, crop, min_scale, seed
        self.jitter = jitter
        self.timm = _timm_transform(crop, min_scale) if augment == "timm" else None
        pixels = sum(record.width * record.height for record in train.records)
        self.cache: dict[int, np.ndarray] | None = {} if pixels <= CACHED_PIXELS else None

    def __len__(self) -> int:
        return len(self.train.records)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor] | tuple[str, str, str]:
        epoch, index = place
        try:
            image = self._image(index)
        except BadInput as error:  # would not survive the way out of a worker process
            return error.path, error.problem, error.hint
        labels = torch.zeros(len(self.train.classes))
        labels[list(self.train.records[index].tags)] = 1
        rng = np.random.default_rng([self.seed, epoch, index])
        if self.timm is not None:
            with _global_generators(int(rng.integers(2**32))):
                return self.timm(_pil(image)), labels
        return to_tensor(
            light_augment(image, self.crop, self.min_scale, jitter=self.jitter, rng=rng)
        ), labels

    def _image(self, index: int) -> np.ndarray:
        if self.cache is None:
            return load_image(self.train.records[index].path)
        if index not in self.cache:
            self.cache[index] = load_image(self.train.records[index].path)
        return self.cache[index]


def epoch_batches(
    samples: TagSamples, *, batch_size: int, first_epoch: int, epochs: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (images `[B, 3, crop, crop]`, labels `[B, C]`) of epochs first_epoch..epochs-1.

    Every epoch is a new order of all images; what does not fill a batch is left out. Raises
    `BadInput` for an image that cannot be decoded.
    """
    places = []
    for epoch in range(first_epoch, epochs):
        order = np.random.default_rng([samples.seed, epoch]).permutation(len(samples)).tolist()
        for start in range(0, len(order) - batch_size + 1, batch_size):
            places.append([(epoch, index) for index in order[start : start + batch_size]])
    loader = DataLoader(
        samples,
        batch_sampler=places,
        num_workers=workers,
        collate_fn=_collate,
        # Its own generator: at its start the loader would draw from the trainer's.
        generator=torch.Generator().manual_seed(0),
    )
    for batch in loader:
        if len(batch) == 3:
            raise BadInput(*batch)
        yield batch


def _collate(items: list) -> tuple:
    fault = next((item for item in items if len(item) == 3), None)
    return fault or tuple(torch.stack(column) for column in zip(*items, strict=True))


def _timm_transform(crop: int, min_scale: float) -> Callable:
    """The ImageNet training transform that WeakTr uses (RandAugment 9, random erasing 0.25)."""
    from timm.data import create_transform

    return create_transform(
        input_size=crop,
        is_training=True,
        scale=(min_scale, 1.0),
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
    )


def _pil(image: np.ndarray):
    from PIL import Image

    return Image.fromarray(image)


@contextlib.contextmanager
def _global_generators(seed: int) -> Iterator[None]:
    """Seeds the three generators that timm draws from, and puts their states back."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
