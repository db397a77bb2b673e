"""Scales of images, and the few padded sizes in which images of all shapes are shown at a scale."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np

from weaksam_jax.data.records import TagRecord
from weaksam_jax.errors import BadInput
from weaksam_jax.ranges import FILLED, Fault, Side

PaddedSize = tuple[Side, Side]  # height, width
# One scale: a padded size for each shape of image (say landscape and portrait), in a fixed order.
Scale = Annotated[tuple[PaddedSize, ...], FILLED]
Scales = Annotated[tuple[Scale, ...], FILLED]
MOST_BYTES = 2**33  # of the images of one batch, uint8
# A smaller size is taken where it costs an image no more than this part of its size.
SHRINKAGE = 0.01


def padded_sizes(
    short_side: int,
    max_side: int,
    stride: int = 8,
    aspects: Sequence[float] = (4 / 3, 3 / 2),
) -> Scale:
    """Padded sizes in which every image has its short side at `short_side`, its long <= `max_side`.

    A landscape size of each aspect (long over short), a last one of `max_side` for all longer
    images, and as many portrait ones. With `bucket_of` an image is shown at 99 % or more of the
    size that Detectron's rule (short side = s, unless the long one passes the limit) asks for.
    stride: sides are multiples of it; `short_side` is rounded up, `max_side` down. All sides of the
    paper (480 to 1200, and 2000) are multiples of 8, VGG16's stride, so nothing is rounded there;
    with 32, to which the official code pads after resizing, 688 would be shown at 704.

    Padding, on the 2000 photographs of VOC2007 that tests/data/test_views.py lists, in the six
    scales of the paper: 6 % more pixels, in 36 sizes. Aspects (3/2,): 13 % in 24. (The four
    sizes 4:3, 5:3 and their transposes alone pad 5 %, but show 9 % of the photographs below 99 %
    of their size, and the longest at 52 %.) The longest sizes are rare, and those of a small
    scale are no larger than those of the largest.
    """
    short = math.ceil(short_side / stride) * stride
    limit = max_side // stride * stride
    if short > limit:
        problem = f"short side {short_side} is more than the longest side {max_side}"
        raise BadInput("scales", problem, "choose a larger max_side")
    sides = [math.ceil(short * aspect / stride) * stride for aspect in sorted(aspects)]
    sides = [min(side, limit) for side in sides] + [limit]
    return (*((short, side) for side in sides), *((side, short) for side in sides))


def bucket_of(record: TagRecord, scales: Sequence[Scale]) -> int:
    """Index of the padded size that an image is shown in, the same for all scales.

    The smallest of those that show it within `SHRINKAGE` of the size that the best one does, at
    every scale; equal ones: where it is larger, then the first.
    """
    size = np.asarray([record.height, record.width])
    sizes = np.asarray(scales)  # [scales, buckets, 2]
    fits = (sizes / size).min(2)
    kept = (fits / fits.max(1, keepdims=True)).min(0)
    enough = min(1 - SHRINKAGE, kept.max())
    areas = sizes.prod(2).sum(0)
    choices = [bucket for bucket in range(len(kept)) if kept[bucket] >= enough]
    return min(choices, key=lambda bucket: (areas[bucket], -fits[:, bucket].sum()))


def misfit_scales(name: str, scales: Sequence[Scale], multiple: int = 1) -> Iterator[Fault]:
    """Faults of a config's field `name` whose scales do not have the same number of padded sizes,
    one or more, or sides that are no multiples of `multiple`."""
    counts = {len(scale) for scale in scales}
    if len(counts) != 1 or counts == {0}:
        problem = f"have {' and '.join(map(str, sorted(counts))) or 'no'} padded sizes"
        yield Fault(name, problem, "give every scale one padded size for each shape of image")
    wrong = [side for scale in scales for size in scale for side in size if side % multiple]
    if wrong:
        problem = f"have the side {wrong[0]}"
        yield Fault(name, problem, f"give multiples of {multiple}, the backbone's stride")


def misfit_memory(name: str, batch_size: int, scales: Sequence[Scale]) -> Iterator[Fault]:
    """The fault of a batch size, in the config's field `name`, beyond `MOST_BYTES` of images."""
    largest = max((height * width for scale in scales for height, width in scale), default=0)
    if 3 * batch_size * largest > MOST_BYTES:
        problem = f"is {batch_size}: {3 * batch_size * largest / 2**30:.0f} GB of images at once"
        yield Fault(name, problem, "choose a smaller batch or scale")


def check_scales(scales: Sequence[Scale]) -> None:
    """`BadInput` unless all scales have the same number of padded sizes, one or more."""
    for fault in misfit_scales("scales", scales):
        raise BadInput(*fault)
