"""Scales of images, and the few padded sizes in which images of all shapes are shown at a scale."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

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


class Shown(NamedTuple):
    """How images are shown: their padded size, and what the shorter side of one measures at most.

    (The padded size of a long image at a small scale may be that of a larger scale, which the image
    is not to fill.)
    """

    padded: PaddedSize
    short: int

    def fit(self, height: float, width: float) -> float:
        """The factor that an image of that size is resized with."""
        padded, short = self
        return min(padded[0] / height, padded[1] / width, short / min(height, width))


def short_side(scale: Scale) -> int:
    """What the shorter side of an image measures at a scale, unless the longer one does not fit."""
    return min(min(size) for size in scale)


def shown_at(scale: Scale, bucket: int) -> Shown:
    """How the images of a bucket are shown at a scale."""
    return Shown(scale[bucket], short_side(scale))


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
    """
    short, limit = _sides(short_side, max_side, stride)
    sides = [min(_up(short * aspect, stride), limit) for aspect in sorted(aspects)] + [limit]
    return (*((short, side) for side in sides), *((side, short) for side in sides))


def shared_sizes(
    short_sides: Sequence[int],
    max_side: int,
    stride: int = 8,
    *,
    landscape: Sequence[float] = (4 / 3, 3 / 2),
    portrait: Sequence[float] = (3 / 2,),
    longer: Sequence[float] = (16 / 9, 2.0),
) -> Scales:
    """Padded sizes of several scales, which have those of long images in common.

    landscape, portrait: aspects (long over short) of the sizes that a scale has of its own. longer:
    aspects beyond these, of few photographs; images of up to such an aspect are shown in the
    smallest size of any scale that holds them, all longer ones in that of the largest scale. Images
    are as large as in `padded_sizes`. Of six scales this makes 20 sizes for 36, 26 with
    portrait aspects like those of landscapes; `python -m experiments.bench padding` says what is
    padded.
    """
    sides = [_sides(side, max_side, stride) for side in short_sides]
    wide = _shared(sides, stride, sorted(landscape), longer=sorted(longer))
    high = _shared(sides, stride, sorted(portrait), longer=sorted(longer))
    pairs = zip(wide, high, strict=True)
    return tuple((*one, *((side, short) for short, side in other)) for one, other in pairs)


def _shared(
    sides: Sequence[tuple[int, int]], stride: int, aspects: Sequence[float], longer: Sequence[float]
) -> list[list[PaddedSize]]:
    """Landscape sizes of every scale; sides: (short side, longest) of each."""
    own = [[(s, min(_up(s * a, stride), limit)) for a in aspects] for s, limit in sides]
    every = {size for sizes in own for size in sizes} | {max(sides)}

    def smallest(short: int, long: int) -> PaddedSize:
        holding = [size for size in every if size[0] >= short and size[1] >= long]
        return min(holding, key=lambda size: (size[0] * size[1], size))

    found = []
    for sizes, (short, limit) in zip(own, sides, strict=True):
        needed = [min(_up(short * aspect, stride), limit) for aspect in longer] + [limit]
        found.append([*sizes, *(smallest(short, long) for long in needed)])
    return found


def _sides(short_side: int, max_side: int, stride: int) -> tuple[int, int]:
    """(short side, longest side) of a scale, multiples of the stride."""
    short, limit = _up(short_side, stride), max_side // stride * stride
    if short > limit:
        problem = f"short side {short_side} is more than the longest side {max_side}"
        raise BadInput("scales", problem, "choose a larger max_side")
    return short, limit


def _up(side: float, stride: int) -> int:
    return math.ceil(side / stride) * stride


def bucket_of(record: TagRecord, scales: Sequence[Scale]) -> int:
    """Index of the padded size that an image is shown in, the same for all scales.

    The smallest of those that show it within `SHRINKAGE` of the size that the best one does, at
    every scale; equal ones: where it is larger, then the first.
    """
    size = np.asarray([record.height, record.width])
    sizes = np.asarray(scales)  # [scales, buckets, 2]
    shorts = np.asarray([[short_side(scale)] for scale in scales])
    fits = np.minimum((sizes / size).min(2), shorts / size.min())
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
