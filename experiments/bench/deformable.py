"""Entries of `experiments.bench`: deformable attention in its forms beside PyTorch's usual one.

One image of 10,000 queries in a raster, 8 heads, 4 points on each of 4 levels (76 x 100 to 10 x
13), 32 channels a head: the encoder of a small photograph. `deformable` is what runs on a CPU, in
chunks of queries; `deformable_at_once` what runs elsewhere. PyTorch's form is `grid_sample` level
by level, which those use who lack the compiled kernel.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from experiments.bench.entry import Case, Entry

SHAPES = ((76, 100), (38, 50), (19, 25), (10, 13))
QUERIES, HEADS, CHANNELS, POINTS = 10_000, 8, 32, 4


def inputs() -> list[np.ndarray]:
    """value `[T, H, D]`, locations `[Q, H, L, P, 2]`, weights `[Q, H, L, P]`, a gradient `[Q, H,
    D]`, float32."""
    rng = np.random.default_rng(0)
    side = round(QUERIES**0.5)
    steps = (np.arange(side) + 0.5) / side
    centres = np.stack(np.meshgrid(steps, steps), -1).reshape(QUERIES, 1, 1, 1, 2)
    value = rng.normal(size=(sum(h * w for h, w in SHAPES), HEADS, CHANNELS))
    locations = centres + rng.normal(0, 0.03, (QUERIES, HEADS, len(SHAPES), POINTS, 2))
    weights = rng.uniform(size=locations.shape[:-1])
    weights = weights / weights.sum((2, 3), keepdims=True)
    every = value, locations, weights, rng.normal(size=(QUERIES, HEADS, CHANNELS))
    return [one.astype(np.float32) for one in every]


def deformable(chunk: int | None, backward: bool) -> Entry:
    from weaksam_jax.ops.deformable_attention import deformable_attention

    *arrays, gradient = inputs()

    def attend(*arrays):
        value, locations, weights = arrays
        return deformable_attention(value, SHAPES, locations, weights=weights, chunk=chunk)

    def both(arrays, gradient):
        return jax.vjp(attend, *arrays)[1](gradient)

    def forward(arrays, gradient):
        return (attend(*arrays),)

    given = jax.tree.map(jnp.asarray, (arrays, gradient))
    step = jax.jit(both if backward else forward).lower(*given).compile()
    memory = step.memory_analysis().temp_size_in_bytes / 1e6
    way = "forward + backward" if backward else "forward"
    work = f"deformable attention {way}, {QUERIES:,} queries ({memory:.0f} MB)"
    ours = lambda: jax.block_until_ready(step(*given))  # noqa: E731
    theirs = partial(_with_grid_sample, arrays, gradient if backward else None)
    return Entry(work, ours, "torch grid_sample", other=theirs, agree=_agree)


def _with_grid_sample(arrays, gradient: np.ndarray | None) -> list[np.ndarray]:
    """The result, or the gradients of value, locations and weights."""
    tensors = [torch.from_numpy(one) for one in arrays]
    if gradient is None:
        return [grid_sample_form(*tensors).numpy()]
    tensors = [one.requires_grad_() for one in tensors]
    grid_sample_form(*tensors).backward(torch.from_numpy(gradient))
    found = [one.grad.numpy() for one in tensors]
    for one in tensors:
        one.requires_grad_(False).grad = None
    return found


def grid_sample_form(value, locations, weights) -> torch.Tensor:
    """`[Q, H, D]`: `grid_sample` of each level, then the weighted sum over all samples."""
    maps = value.split([h * w for h, w in SHAPES])
    sampled = []
    for level, (height, width) in enumerate(SHAPES):
        one = maps[level].permute(1, 2, 0).reshape(HEADS, CHANNELS, height, width)
        grid = 2 * locations[:, :, level].transpose(0, 1) - 1
        sampled.append(F.grid_sample(one, grid, align_corners=False))
    every = torch.stack(sampled, -2).flatten(-2)
    flat = weights.transpose(0, 1).reshape(HEADS, 1, QUERIES, -1)
    return (every * flat).sum(-1).permute(2, 0, 1)


def _agree(ours, other) -> str:
    pairs = zip(ours, other, strict=True)
    worst = max(np.abs(np.asarray(one) - two).max() / np.abs(two).max() for one, two in pairs)
    return f"differ by {worst:.1e} of the largest"


CASES: dict[str, Case] = {
    f"{name}{'' if backward else '_forward'}": partial(deformable, chunk, backward)
    for name, chunk in (("deformable", None), ("deformable_at_once", 0))
    for backward in (False, True)
}
