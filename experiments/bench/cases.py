"""The entries of `experiments.bench` by name: functions that prepare the input of an `Entry`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.bench import box_ops, convolution, deformable, dino_loss, mil, rcnn, sam
from experiments.bench.entry import Case, Entry, random_boxes

# A view of 480 x 640 through VGG16: what the MIL detector pools from.
MAP, STRIDE = (60, 80, 512), 8


def _roi_inputs(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    features = rng.standard_normal(MAP, dtype=np.float32)
    return features, random_boxes(rng, count, MAP[1] * STRIDE, height=MAP[0] * STRIDE)


def roi_align(count: int) -> Entry:
    from weaksam_jax.ops.roi import roi_align as ours

    features, boxes = _roi_inputs(count)
    work = f"RoIAlign 7x7 forward + backward, {count} boxes, {'x'.join(map(str, MAP))}"
    step = jax.jit(jax.grad(lambda f, b: (ours(f, b, 1 / STRIDE) ** 2).sum()))
    on_device = jnp.asarray(features), jnp.asarray(boxes)
    grid = _sampling_grid(boxes)

    def with_grid_sample():
        maps = torch.from_numpy(features).permute(2, 0, 1)[None].contiguous().requires_grad_()
        sampled = torch.nn.functional.grid_sample(
            maps, grid, align_corners=False, padding_mode="border"
        )
        pooled = torch.nn.functional.avg_pool2d(
            sampled[0].unflatten(1, (count, 14)).transpose(0, 1), 2
        )
        pooled.square().sum().backward()
        return maps.grad[0].permute(1, 2, 0).numpy()

    ours_call = lambda: jax.block_until_ready(step(*on_device))  # noqa: E731
    return Entry(work, ours_call, "torch grid_sample", other=with_grid_sample, agree=_difference)


def _difference(ours, other) -> str:
    error = np.abs(np.asarray(ours) - other).max() / np.abs(other).max()
    return f"gradients differ by {error:.1e}"


def _sampling_grid(boxes: np.ndarray) -> torch.Tensor:
    """grid_sample coordinates `[1, n * 14, 14, 2]` of 2 x 2 samples in each of 7 x 7 bins; with
    those of RoIAlign aligned to pixel centres, as grid_sample has them."""
    steps = (np.arange(14) + 0.5) / 14
    x = (boxes[:, :1] + steps * (boxes[:, 2:3] - boxes[:, :1])) / STRIDE / MAP[1] * 2 - 1
    y = (boxes[:, 1:2] + steps * (boxes[:, 3:] - boxes[:, 1:2])) / STRIDE / MAP[0] * 2 - 1
    shape = (len(boxes), 14, 14)
    grid = np.stack(
        [np.broadcast_to(x[:, None, :], shape), np.broadcast_to(y[:, :, None], shape)], axis=-1
    )
    return torch.from_numpy(grid.reshape(1, -1, 14, 2).astype(np.float32))


def roi_pool(count: int) -> Entry:
    from experiments.bench.torch_mil_step import pooled
    from weaksam_jax.ops.roi import roi_pool as ours

    features, boxes = _roi_inputs(count)
    step = jax.jit(jax.grad(lambda f, b: (ours(f, b, 1 / STRIDE) ** 2).sum()))
    on_device = jnp.asarray(features), jnp.asarray(boxes)

    def with_adaptive_pool():
        maps = torch.from_numpy(features).permute(2, 0, 1).contiguous().requires_grad_()
        pooled(maps, torch.from_numpy(boxes)).square().sum().backward()
        return maps.grad.permute(1, 2, 0).numpy()

    work = f"RoIPool 7x7 forward + backward, {count} boxes, {'x'.join(map(str, MAP))}"
    ours_call = lambda: jax.block_until_ready(step(*on_device))  # noqa: E731
    other = "torch adaptive_max_pool2d loop"
    return Entry(work, ours_call, other, other=with_adaptive_pool, agree=_difference)


def roi_pool_forward(count: int) -> Entry:
    from experiments.bench.torch_mil_step import pooled
    from weaksam_jax.ops.roi import roi_pool as ours

    features, boxes = _roi_inputs(count)
    step = jax.jit(lambda f, b: ours(f, b, 1 / STRIDE))
    on_device = jnp.asarray(features), jnp.asarray(boxes)
    maps = torch.from_numpy(features).permute(2, 0, 1).contiguous()

    def same(ours, other) -> str:
        equal = (np.asarray(ours) == other.permute(0, 2, 3, 1).numpy()).mean()
        return f"{100 * equal:.1f} % of the values equal"

    work = f"RoIPool 7x7 forward, {count} boxes, {'x'.join(map(str, MAP))}"
    ours_call = lambda: jax.block_until_ready(step(*on_device))  # noqa: E731
    theirs = lambda: pooled(maps, torch.from_numpy(boxes))  # noqa: E731
    other = "torch adaptive_max_pool2d loop"
    return Entry(work, ours_call, other, other=theirs, agree=same)


def mining(count: int) -> Entry:
    from experiments.bench.torch_mil_step import mine
    from weaksam_jax.detectors.mil.loss import mine_mist

    rng = np.random.default_rng(0)
    boxes, scores = (
        random_boxes(rng, count, 500, height=375),
        rng.random((count, 20), dtype=np.float32),
    )
    tags = np.isin(np.arange(20), (3, 7, 14))
    step = jax.jit(mine_mist)
    inputs = tuple(map(jnp.asarray, (boxes, np.ones(count, bool), scores, tags)))
    tensors = tuple(map(torch.from_numpy, (boxes, scores, tags)))

    def same(ours, other) -> str:
        equal = (np.asarray(ours.labels) == other[0].numpy()).sum()
        return f"{equal} of {count} labels equal"

    work = f"MIST mining, {count} proposals, 3 of 20 classes"
    ours_call = lambda: jax.block_until_ready(step(*inputs))  # noqa: E731
    return Entry(work, ours_call, "torch, class by class", other=lambda: mine(*tensors), agree=same)


def peaks() -> Entry:
    from bridge.proposals.peaks import peak_points

    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((72, 1, 24, 32), dtype=np.float32))
    # Corners aligned: no plateaus at the border, of which torch.topk takes any point.
    sized = torch.nn.functional.interpolate(coarse, (375, 500), mode="bilinear", align_corners=True)
    maps = sized[:, 0].numpy()
    maps = (maps - maps.min((1, 2), keepdims=True)) / np.ptp(maps, axis=(1, 2), keepdims=True)

    def same(ours, other):
        points = [[(int(x), int(y)) for x, y, _ in one] for one in ours]
        equal = sum(one == two for one, two in zip(points, other, strict=True))
        return f"same points in {equal} of {len(other)} maps, {sum(map(len, points))} points"

    work, other = "peak points of 72 maps of 375x500, kernel 129", "one full max-pool per map"
    one_by_one = lambda: [_peaks_of_one(one) for one in torch.from_numpy(maps)]  # noqa: E731
    return Entry(work, lambda: peak_points(maps, 129, 0.9), other, other=one_by_one, agree=same)


def _peaks_of_one(one: torch.Tensor) -> list[tuple[int, int]]:
    """Points (x, y) of a map `[375, 500]`: local maxima of kernel 129, at least 64 apart."""
    pooled = torch.nn.functional.max_pool2d(one[None, None], 129, 1, 64)[0, 0]
    values, index = torch.topk((one * (pooled == one)).flatten(), 25)
    points: list[tuple[int, int]] = []
    for value, place in zip(values.tolist(), index.tolist(), strict=True):
        y, x = divmod(place, 500)
        if value < 0.9:
            break
        if all(abs(x - u) + abs(y - v) >= 64 for u, v in points):
            points.append((x, y))
    return points


def proposals() -> Entry:
    from segment_anything import SamPredictor

    import bridge.runtime.torchvision_ops  # noqa: F401
    from bridge.proposals.prompts import Prompts, dense_grid
    from bridge.proposals.sam_proposals import propose
    from bridge.proposals.selection import ProposalConfig
    from bridge.sam.networks import load_sam

    network = load_sam("sam_mini")
    image = np.random.default_rng(0).integers(0, 255, (144, 192, 3), dtype=np.uint8)
    prompts = Prompts(dense_grid(10, 144, 192), np.zeros((0, 5), np.float32))

    def one_by_one():
        predictor = SamPredictor(network)
        predictor.set_image(image)
        return [
            predictor.predict(point[None], np.ones(1, int), multimask_output=True)
            for point in prompts.grid
        ]

    work = "100 grid points of one 144x192 image, sam_mini, one image encoding"
    ours = lambda: propose(network, image, prompts, config=ProposalConfig())  # noqa: E731
    return Entry(work, ours, "SamPredictor per point", other=one_by_one)


_SAM = (sam.sam_predictor, sam.sam_grid, sam.sam_half, sam.sam_export)
COUNTS = (213, 2001)  # proposals of an image: SAM's and selective search's (Table 6)
CASES: dict[str, Case] = {
    **{
        f"{case.__name__}_{count}": partial(case, count)
        for case in (roi_align, roi_pool, roi_pool_forward, mining, box_ops.nms)
        for count in COUNTS
    },
    **{
        case.__name__: case
        for case in (box_ops.rpn_proposals, peaks, proposals, sam.sam_decoder, *_SAM)
    },
    **{f"mil_step_{count}": mil.step_case(count) for count in COUNTS},
    **convolution.CASES,
    **rcnn.CASES,
    **dino_loss.CASES,
    **deformable.CASES,
}
SLOW = (
    *("peaks", *(case.__name__ for case in _SAM), *(f"mil_step_{count}" for count in COUNTS)),
    *rcnn.CASES,
)
