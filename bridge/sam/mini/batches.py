"""From images with nested masks to training batches of prompts and targets.

An example is `(image uint8 [S, S, 3], masks bool [n, S, S])`. Targets live on a random phase
of the mask grid: of every `THIN` x `THIN` block of mask pixels one is compared, an unbiased
estimate of the loss at a fraction of its cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Example = tuple[np.ndarray, np.ndarray]
POINTS, STRAY, BOXES, CLICKS = 6, 2, 3, 1  # prompts of an image, by kind
CLICKS_EACH = 3  # points of one several-point prompt
NESTED = 3  # masks of a point that can be learnt: as many as tokens


@dataclass
class Batch:
    """B images; h = w = S / stride / THIN. Coordinates in pixels of the S x S input."""

    image: Tensor  # uint8 [B, S, S, 3]
    inside: Tensor  # bool [B, S, S], False on padding
    points: Tensor  # float [B, POINTS + STRAY, 1, 2]
    nested: Tensor  # float [B, POINTS + STRAY, 3, h, w], small to large
    count: Tensor  # int64 [B, POINTS + STRAY], how many of the three are real
    boxes: Tensor  # float [B, BOXES, 4]
    boxed: Tensor  # float [B, BOXES, h, w]
    clicks: Tensor  # float [B, CLICKS, CLICKS_EACH, 2]
    clicked: Tensor  # float [B, CLICKS, h, w]
    masks: list[Tensor]  # per image float [n, h, w]
    phase: tuple[int, int]  # which mask pixel of each block, (y, x)


class Pool:
    """Examples in memory, each used a few times in other poses before it is replaced."""

    def __init__(self, draw: Callable[[int], Example], first: int, size: int, fresh: float):
        """draw: number -> example; fresh: share of the answers that are drawn anew."""
        self.draw, self.next, self.size, self.fresh = draw, first, size, fresh
        self.stored: list[tuple[np.ndarray, np.ndarray, tuple[int, ...]]] = []

    def take(self, rng: np.random.Generator) -> Example:
        if len(self.stored) >= 16 and rng.random() > self.fresh:
            image, bits, shape = self.stored[rng.integers(len(self.stored))]
            return image, np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape) > 0
        image, masks = self.draw(self.next)
        self.next += 1
        if len(masks) == 0:
            return self.take(rng)
        entry = (image, np.packbits(masks), masks.shape)
        if len(self.stored) < self.size:
            self.stored.append(entry)
        else:
            self.stored[rng.integers(self.size)] = entry
        return image, masks


def pose(rng: np.random.Generator, example: Example, rotate: bool) -> tuple[np.ndarray, ...]:
    """Flip, at choice rotate and permute colours, crop to a random aspect, pad back.

    Returns image [S, S, 3], masks [n, S, S] and inside bool [S, S]; padding is right/below,
    as `Sam.preprocess` pads.
    """
    image, masks = example
    if rng.random() < 0.5:
        image, masks = image[:, ::-1], masks[:, :, ::-1]
    if rotate:
        k = int(rng.integers(4))
        image, masks = np.rot90(image, k), np.rot90(masks, k, (1, 2))
        image = image[..., rng.permutation(3)]
    size = len(image)
    inside = np.zeros((size, size), bool)
    high, wide = (size, int(size * rng.uniform(0.5, 1))) if rng.random() < 0.7 else (size, size)
    if rng.random() < 0.5:
        high, wide = wide, high
    y, x = int(rng.integers(size - high + 1)), int(rng.integers(size - wide + 1))
    inside[:high, :wide] = True
    new_image, new_masks = np.zeros_like(image), np.zeros_like(masks)
    new_image[:high, :wide] = image[y : y + high, x : x + wide]
    new_masks[:, :high, :wide] = masks[:, y : y + high, x : x + wide]
    new_masks = new_masks[new_masks.sum((1, 2)) >= 80]
    if len(new_masks) == 0:
        return np.ascontiguousarray(image), masks.copy(), np.ones((size, size), bool)
    return new_image, new_masks, inside


def thin_grid(masks: np.ndarray, stride: int, thin: int, phase: tuple[int, int]) -> np.ndarray:
    """Masks [n, S, S] on one phase of the mask grid: float32 [n, S/stride/thin, ...]."""
    n, size = masks.shape[:2]
    blocks = masks.reshape(n, size // (stride * thin), thin, stride, -1, thin, stride)
    blocks = blocks[:, :, phase[0], :, :, phase[1], :]
    return (blocks.mean((2, 4)) >= 0.5).astype(np.float32)


def point_in(rng: np.random.Generator, mask: np.ndarray) -> tuple[int, int]:
    """A uniform pixel (x, y) of a mask."""
    y, x = np.divmod(rng.choice(np.flatnonzero(mask)), mask.shape[1])
    return int(x), int(y)


def jittered_box(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Tight box x0, y0, x1, y1 of a mask with noise of 5% of its sides (SAM: 10%)."""
    x = np.flatnonzero(mask.any(0))
    y = np.flatnonzero(mask.any(1))
    box = np.array([x[0], y[0], x[-1] + 1, y[-1] + 1], float)
    sides = np.tile(box[2:] - box[:2], 2)
    return (box + 0.05 * sides * rng.standard_normal(4)).clip(0, len(mask) - 1)


def prompts_of(rng: np.random.Generator, masks: np.ndarray, inside: np.ndarray) -> tuple:
    """Random prompts of one image and the numbers of the masks they mean.

    Returns points [p, 2] with a list of mask numbers each (small to large, 0 to 3 of them),
    boxes [b, 4] with a mask number each, clicks [c, k, 2] with a mask number each.
    """
    by_size = np.argsort(masks.sum((1, 2)))
    weight = masks.sum((1, 2)) ** 0.25
    pick = rng.choice(len(masks), POINTS + BOXES + CLICKS, p=weight / weight.sum())
    points = [point_in(rng, masks[i]) for i in pick[:POINTS]]
    points += [point_in(rng, inside) for _ in range(STRAY)]
    meant = []
    for x, y in points:
        holding = [int(i) for i in by_size if masks[i, y, x]]
        if len(holding) > NESTED:
            holding = [holding[0], holding[len(holding) // 2], holding[-1]]
        meant.append(holding)
    boxed = pick[POINTS : POINTS + BOXES]
    clicked = pick[POINTS + BOXES :]
    boxes = [jittered_box(rng, masks[i]) for i in boxed]
    clicks = [[point_in(rng, masks[i]) for _ in range(CLICKS_EACH)] for i in clicked]
    return points, meant, boxes, boxed, clicks, clicked


def collate(
    rng: np.random.Generator, examples: list[Example], stride: int, thin: int, rotate: bool
) -> Batch:
    """Pose the examples, draw prompts and lay everything out as one `Batch`."""
    phase = int(rng.integers(thin)), int(rng.integers(thin))
    rows: list[tuple] = []
    for example in examples:
        image, masks, inside = pose(rng, example, rotate)
        low = thin_grid(masks, stride, thin, phase=phase)
        points, meant, boxes, boxed, clicks, clicked = prompts_of(rng, masks, inside)
        nested = np.zeros((len(points), NESTED, *low.shape[1:]), np.float32)
        for p, numbers in enumerate(meant):
            nested[p, : len(numbers)] = low[numbers]
        count = [len(numbers) for numbers in meant]
        rows.append(
            (image, inside, np.float32(points)[:, None], nested, np.int64(count),
             np.float32(boxes), low[boxed], np.float32(clicks), low[clicked], low)
        )  # fmt: skip
    *stacked, masks = zip(*rows, strict=True)
    tensors = [torch.from_numpy(np.stack(column)) for column in stacked]
    return Batch(*tensors, masks=[torch.from_numpy(m) for m in masks], phase=phase)
