"""Entries of `experiments.bench`: what DINO's losses are made of, beside scipy and PyTorch.

Seven sets of queries (six decoder layers and the encoder) of two images; `assignment_<objects>` has
so many objects in one image and seven in the other, padded alike. scipy has the valid rows only,
already on the host.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from experiments.bench.entry import Case, Entry

LAYERS, IMAGES, QUERIES, CLASSES = 7, 2, 900, 80
OBJECTS = (20, 100)


def matching_costs(objects: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Costs float32 `[7, 2, G, 900]` as those of matching, and valid bool `[7, 2, G]`.

    Queries crowd where objects are: most are noisy copies of an object's box, some lie anywhere.
    """
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0.1, 0.9, (IMAGES, objects, 4))
    of = rng.integers(0, objects, (LAYERS, IMAGES, QUERIES))
    queries = np.take_along_axis(boxes[None], of[..., None], axis=2)
    queries = queries + rng.normal(0, 0.1, queries.shape)
    distance = np.abs(queries[:, :, None] - boxes[None, :, :, None]).sum(-1)
    cost = 5 * distance + 2 * rng.normal(0, 0.3, distance.shape)
    valid = np.arange(objects) < np.array([[objects], [min(7, objects)]])
    shape = (LAYERS, IMAGES, objects)
    return cost.astype(np.float32), np.ascontiguousarray(np.broadcast_to(valid, shape))


def assignment(objects: int) -> Entry:
    from weaksam_jax.ops.assignment import assign_all

    cost, valid = matching_costs(objects)
    solve, on_device = jax.jit(assign_all), (jnp.asarray(cost), jnp.asarray(valid))

    def with_scipy():
        places = np.ndindex(LAYERS, IMAGES)
        return [linear_sum_assignment(cost[place][valid[place]]) for place in places]

    def agree(ours, other) -> str:
        equal = total = 0
        for place, (rows, columns) in zip(np.ndindex(LAYERS, IMAGES), other, strict=True):
            equal += int((np.asarray(ours.query)[place][: len(rows)] == columns).sum())
            total += len(rows)
        return f"{equal} of {total} objects have the same query"

    work = f"{LAYERS * IMAGES} assignments, {objects} and 7 objects, {QUERIES} queries"
    ours = lambda: jax.block_until_ready(solve(*on_device))  # noqa: E731
    return Entry(work, ours, "scipy, one by one", other=with_scipy, agree=agree)


def focal() -> Entry:
    from torchvision.ops import sigmoid_focal_loss

    from weaksam_jax.losses.focal import focal_loss

    rng = np.random.default_rng(0)
    shape = (LAYERS, IMAGES, QUERIES, CLASSES)
    logits, labels = rng.standard_normal(shape, np.float32) - 3, rng.random(shape) < 0.01
    step = jax.jit(jax.grad(lambda x, y: focal_loss(x, y).sum()))
    on_device = jnp.asarray(logits), jnp.asarray(labels)
    truth = torch.from_numpy(labels).float()

    def theirs():
        tensor = torch.from_numpy(logits).requires_grad_()
        sigmoid_focal_loss(tensor, truth, reduction="sum").backward()
        return tensor.grad.numpy()

    def agree(ours, other) -> str:
        return f"gradients differ by {np.abs(np.asarray(ours) - other).max():.1e}"

    work = f"focal loss forward + backward, {'x'.join(map(str, shape))}"
    ours = lambda: jax.block_until_ready(step(*on_device))  # noqa: E731
    return Entry(work, ours, "torchvision", other=theirs, agree=agree)


CASES: dict[str, Case] = {
    **{f"assignment_{count}": partial(assignment, count) for count in OBJECTS},
    "focal_loss": focal,
}
