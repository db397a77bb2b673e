"""Test-time views: how images are shown to a detector, and boxes there and back."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np

from weaksam_jax.boxes import clip, flip
from weaksam_jax.data.images import load_image
from weaksam_jax.data.padding import resize_and_pad
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.scales import PaddedSize, Scale, Shown, bucket_of, check_scales, shown_at


@dataclass(frozen=True)
class View:
    """How an image is shown to the network: index of the scale, mirrored or not."""

    scale: int
    flip: bool


def views_of(scales: Sequence[Scale], tta_flip: bool = True) -> list[View]:
    """Every scale, plain and (with `tta_flip`) mirrored."""
    flips = (False, True) if tta_flip else (False,)
    return [View(scale, flip) for scale in range(len(scales)) for flip in flips]


class ImageViews:
    """The images of a split as test batches, in every view (`weaksam_jax.engine.predict`).

    class_factors: float `[images, C]`, what the scores of each class in an image are multiplied
    with (None: 1). load: gives the image uint8 `[H, W, 3]` of a record. buckets: which padded size
    of a scale each image is shown in.
    """

    def __init__(
        self,
        split: TagSplit,
        tta_scales: Sequence[Scale],
        *,
        tta_flip: bool,
        batch_size: int,
        class_factors: np.ndarray | None = None,
        load: Callable[[TagRecord], np.ndarray] = lambda record: load_image(record.path),
    ):
        check_scales(tta_scales)
        self.split, self.batch_size = split, batch_size
        self.buckets = [bucket_of(record, tta_scales) for record in split.records]
        self._scales, self._views = tta_scales, views_of(tta_scales, tta_flip)
        self._factors, self._load = class_factors, load

    def __call__(self, indices: Sequence[int], pool: Executor) -> Iterator[dict[str, np.ndarray]]:
        """A batch of these images (all of one bucket) for each view in turn.

        `image` uint8 `[B, H, W, 3]`, `size` float32 `[B, 2]`, and what takes boxes back to the
        images: `original` float32 `[B, 2]` (height, width), `flipped` bool `[B]`; with class
        factors `class_factor` float `[B, C]`.
        """
        records = [self.split.records[i] for i in indices]
        images = list(pool.map(self._load, records))
        shared = {"original": np.asarray([[r.height, r.width] for r in records], np.float32)}
        if self._factors is not None:
            shared["class_factor"] = np.asarray(self._factors)[list(indices)]
        for view in self._views:
            how = shown_at(self._scales[view.scale], self.buckets[indices[0]])
            found = list(pool.map(partial(_show, shown=how, flipped=view.flip), images))
            yield {
                "image": np.stack([image for image, _ in found]),
                "size": np.asarray([size for _, size in found], np.float32),
                "flipped": np.full(len(records), view.flip),
                **shared,
            }


def _show(image: np.ndarray, shown: Shown, flipped: bool) -> tuple[np.ndarray, PaddedSize]:
    none, scale = np.zeros((0, 4), np.float32), shown.fit(*image.shape[:2])
    found, _, size = resize_and_pad(image, none, shown.padded, scale=scale, flip=flipped)
    return found, size


def fitted_size(record: TagRecord, shown: Shown) -> tuple[int, int]:
    """(height, width) of an image as it is shown, as `resize_and_pad` makes it."""
    scale = shown.fit(record.height, record.width)
    return max(1, round(record.height * scale)), max(1, round(record.width * scale))


def place_boxes(
    boxes: np.ndarray, record: TagRecord, size: tuple[int, int], flipped: bool
) -> np.ndarray:
    """Boxes of the original image in a view of that (height, width)."""
    factors = np.asarray([size[1] / record.width, size[0] / record.height] * 2, np.float32)
    boxes = boxes * factors
    return flip(boxes, np.float32(size[1])) if flipped else boxes


def restore_boxes(boxes, size, original, flipped):
    """Boxes `[..., 4]` of a view in pixels of the original image, cut to it.

    size, original: (height, width) of the image in the view and as it is; flipped: bool. NumPy or
    JAX arrays (in a compiled function, so that a view and its mirror share one program).
    """
    xp = boxes.__array_namespace__()
    boxes = xp.where(flipped, flip(boxes, size[1]), boxes)
    x, y = original[1] / size[1], original[0] / size[0]
    return clip(boxes * xp.stack([x, y, x, y]), original[1], original[0])
