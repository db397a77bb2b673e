"""The entries of `experiments.bench`: each returns (work, our form, name of the other, other form).

Both forms are called without arguments and end when their result is on the host's side. A fifth
item, when there is one, makes a text from both results: what they agree on.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments import bench_sam

Case = Callable[[], tuple]


def random_boxes(rng: np.random.Generator, count: int, width: float, height: float) -> np.ndarray:
    """float32 `[count, 4]` boxes of mixed sizes inside the image."""
    size = np.exp(rng.uniform(np.log(16), np.log(min(width, height) - 1), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * (np.asarray([width, height]) - size)
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def roi_align() -> tuple[str, Callable, str, Callable]:
    from weaksam_jax.ops.roi import roi_align as ours

    rng = np.random.default_rng(0)
    features = rng.standard_normal((50, 75, 256), dtype=np.float32)
    boxes = random_boxes(rng, 256, 1200, 800)
    work = "RoIAlign 7x7 forward + backward, 256 boxes, 50x75x256"
    step = jax.jit(jax.value_and_grad(lambda f, b: ours(f, b, 1 / 16).sum()))
    on_device = jnp.asarray(features), jnp.asarray(boxes)
    grid = _sampling_grid(boxes, 50, 75)

    def with_grid_sample():
        maps = torch.from_numpy(features).permute(2, 0, 1)[None].requires_grad_()
        sampled = torch.nn.functional.grid_sample(
            maps, grid, align_corners=False, padding_mode="border"
        )
        pooled = torch.nn.functional.avg_pool2d(
            sampled[0].unflatten(1, (256, 14)).transpose(0, 1), 2
        )
        pooled.sum().backward()
        return maps.grad

    return (
        work,
        lambda: jax.block_until_ready(step(*on_device)),
        "torch grid_sample",
        with_grid_sample,
    )


def _sampling_grid(boxes: np.ndarray, height: int, width: int) -> torch.Tensor:
    """grid_sample coordinates `[1, 256 * 14, 14, 2]` of 2 x 2 samples in each of 7 x 7 bins."""
    steps = (np.arange(14) + 0.5) / 14
    x = (boxes[:, :1] + steps * (boxes[:, 2:3] - boxes[:, :1])) / 16 / width * 2 - 1
    y = (boxes[:, 1:2] + steps * (boxes[:, 3:] - boxes[:, 1:2])) / 16 / height * 2 - 1
    shape = (len(boxes), 14, 14)
    grid = np.stack(
        [np.broadcast_to(x[:, None, :], shape), np.broadcast_to(y[:, :, None], shape)], axis=-1
    )
    return torch.from_numpy(grid.reshape(1, -1, 14, 2).astype(np.float32))


def roi_pool() -> tuple[str, Callable, str, Callable]:
    from weaksam_jax.ops.roi import roi_pool as ours

    rng = np.random.default_rng(0)
    features = rng.standard_normal((50, 75, 256), dtype=np.float32)
    boxes = random_boxes(rng, 256, 1200, 800)
    step = jax.jit(jax.value_and_grad(lambda f, b: ours(f, b, 1 / 16).sum()))
    on_device = jnp.asarray(features), jnp.asarray(boxes)
    corners = np.floor(boxes / 16 + 0.5).astype(int)

    def with_adaptive_pool():
        maps = torch.from_numpy(features).permute(2, 0, 1).contiguous().requires_grad_()
        pooled = [
            torch.nn.functional.adaptive_max_pool2d(maps[:, y1 : y2 + 1, x1 : x2 + 1], 7)
            for x1, y1, x2, y2 in corners
        ]
        torch.stack(pooled).sum().backward()
        return maps.grad

    work = "RoIPool 7x7 forward + backward, 256 boxes, 50x75x256"
    ours_call = lambda: jax.block_until_ready(step(*on_device))  # noqa: E731
    return work, ours_call, "torch adaptive_max_pool2d loop", with_adaptive_pool


def mining() -> tuple[str, Callable, str, Callable]:
    from weaksam_jax.boxes import iou
    from weaksam_jax.losses.mil import mine_mist

    rng = np.random.default_rng(0)
    boxes, scores = random_boxes(rng, 213, 500, 375), rng.random((213, 20), dtype=np.float32)
    tags = np.isin(np.arange(20), (3, 7, 14))
    mine = jax.jit(mine_mist)
    inputs = tuple(map(jnp.asarray, (boxes, np.ones(213, bool), scores, tags)))

    def loop():
        kept, labels, values = [], [], []
        for label in np.flatnonzero(tags):
            order = np.argsort(-scores[:, label], kind="stable")[: int(0.15 * 213)]
            overlap = iou(boxes[order], boxes[order])
            for rank, index in enumerate(order):
                if rank == 0 or overlap[rank, :rank].max() < 0.2:
                    kept.append(index)
                    labels.append(label + 1)
                    values.append(scores[index, label])
        overlap = iou(boxes, boxes[kept])
        best = overlap.argmax(1)
        return np.where(overlap.max(1) >= 0.5, np.asarray(labels)[best], 0), np.asarray(values)[
            best
        ]

    work = "MIST mining, 213 proposals, 3 of 20 classes"
    return work, lambda: jax.block_until_ready(mine(*inputs)), "NumPy loop", loop


def peaks() -> tuple[str, Callable, str, Callable, Callable]:
    from bridge.peaks import peak_points

    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((72, 1, 24, 32), dtype=np.float32))
    # Corners aligned: no plateaus at the border, of which torch.topk takes any point.
    sized = torch.nn.functional.interpolate(coarse, (375, 500), mode="bilinear", align_corners=True)
    maps = sized[:, 0].numpy()
    maps = (maps - maps.min((1, 2), keepdims=True)) / np.ptp(maps, axis=(1, 2), keepdims=True)

    def one_by_one():
        found = []
        for one in torch.from_numpy(maps):
            pooled = torch.nn.functional.max_pool2d(one[None, None], 129, 1, 64)[0, 0]
            values, index = torch.topk((one * (pooled == one)).flatten(), 25)
            points: list[tuple[int, int]] = []
            for value, place in zip(values.tolist(), index.tolist(), strict=True):
                y, x = divmod(place, 500)
                if value < 0.9:
                    break
                if all(abs(x - u) + abs(y - v) >= 64 for u, v in points):
                    points.append((x, y))
            found.append(points)
        return found

    def same(ours, other):
        points = [[(int(x), int(y)) for x, y, _ in one] for one in ours]
        equal = sum(one == two for one, two in zip(points, other, strict=True))
        return f"same points in {equal} of {len(other)} maps, {sum(map(len, points))} points"

    work = "peak points of 72 maps of 375x500, kernel 129"
    return work, lambda: peak_points(maps, 129, 0.9), "one full max-pool a map", one_by_one, same


def proposals() -> tuple[str, Callable, str, Callable]:
    from segment_anything import SamPredictor

    import bridge.torchvision_ops  # noqa: F401
    from bridge.prompts import Prompts, dense_grid
    from bridge.proposals import ProposalSettings, propose
    from bridge.sam import load_sam

    sam = load_sam("sam_mini")
    image = np.random.default_rng(0).integers(0, 255, (144, 192, 3), dtype=np.uint8)
    prompts = Prompts(dense_grid(10, 144, 192), np.zeros((0, 5), np.float32))

    def one_by_one():
        predictor = SamPredictor(sam)
        predictor.set_image(image)
        return [
            predictor.predict(point[None], np.ones(1, int), multimask_output=True)
            for point in prompts.grid
        ]

    work = "100 grid points of one 144x192 image, sam_mini, one image encoding"
    settings = ProposalSettings()
    return work, lambda: propose(sam, image, prompts, settings), "SamPredictor a point", one_by_one


_SAM = (bench_sam.sam_predictor, bench_sam.sam_grid, bench_sam.sam_half, bench_sam.sam_export)
CASES: dict[str, Case] = {
    case.__name__: case
    for case in (roi_align, roi_pool, mining, peaks, proposals, bench_sam.sam_decoder, *_SAM)
}
SLOW = ("peaks", *(case.__name__ for case in _SAM))
