"""The entries of `experiments.bench` about SAM, and the procedure of WeakSAM's official code.

SAM has ViT-B's size and seeded random weights; both forms always have the same ones.
"""

from dataclasses import replace

import numpy as np
import torch

import bridge.runtime.torchvision_ops  # noqa: F401  (before segment_anything: see there)

# isort: split
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from segment_anything.modeling import Sam

from bridge.proposals.agreement import box_agreement
from bridge.proposals.prompts import Prompts, dense_grid
from bridge.proposals.sam_proposals import propose
from bridge.proposals.selection import ProposalConfig
from bridge.sam.decoder import ImageDecoder
from experiments.bench.entry import Entry, random_image
from weaksam_jax.data.store import SOURCES, Proposals

NO_POINTS = np.zeros((0, 5), np.float32)
GRID, COARSE, FINE, CROSS = range(4)


def random_vit_b(seed: int = 0) -> Sam:
    """Published size, seeded weights, frozen; most masks of one image differ in shape.

    A fresh decoder is so flat that every mask is the whole image and no published threshold bites:
    its weights are made larger, the mask threshold high, the predicted IoU spread around 0.3.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sam = sam_model_registry["vit_b"]()
    for parameter in sam.mask_decoder.parameters():
        parameter.data.mul_(2.3)
    sam.mask_decoder.iou_prediction_head.layers[-1].bias.data.sub_(2)
    sam.mask_threshold = 26.0
    return sam.eval().requires_grad_(False)


def random_prompts(
    seed: int, height: int, width: int, grid_side: int, counts: tuple[int, int, int]
) -> Prompts:
    """A dense grid and counts (coarse, fine, cross) of points; coarse and fine are of one class."""
    rng = np.random.default_rng(seed)
    points = np.zeros((sum(counts), 5), np.float32)
    points[:, :2] = np.trunc(rng.uniform(0, 1, (len(points), 2)) * (width, height))
    points[:, 2] = 1
    points[:, 4] = np.repeat([COARSE, FINE, CROSS], counts)
    points[points[:, 4] == CROSS, 3] = -1
    groups = [(0, source, np.flatnonzero(points[:, 4] == source)) for source in (COARSE, FINE)]
    return Prompts(dense_grid(grid_side, height, width), points, groups)


def official_procedure(sam: Sam, image: np.ndarray, prompts: Prompts) -> list[np.ndarray]:
    """Boxes int `[n, 4]` (last pixels inside) of grid, coarse, fine, cross as WeakSAM's code runs.

    After docs/provenance/proposals.md, sections 3.1, 3.2 and 6.2: the image is encoded once for the
    grid, once for each set of peak points and once more for each class of coarse and fine; every
    peak prompt is a decoder call of its own; its full masks go to the CPU, where boxes are made;
    the grid is `SamAutomaticMaskGenerator`, which makes an RLE of every mask before its NMS.
    """
    side = round(len(prompts.grid) ** 0.5)
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=side,
        points_per_batch=64,
        pred_iou_thresh=0.3,
        stability_score_thresh=0.3,
        box_nms_thresh=0.3,
    )
    found = np.asarray([one["bbox"] for one in generator.generate(image)], int).reshape(-1, 4)
    found[:, 2:] += found[:, :2]
    boxes = [found]
    for source in (COARSE, FINE, CROSS):
        made = _peak_boxes(sam, image, prompts, source=source)
        boxes.append(_thin(made, 0.9) if source == CROSS else made)
    return boxes


def _peak_boxes(sam: Sam, image: np.ndarray, prompts: Prompts, source: int) -> np.ndarray:
    """Boxes of a source's points one by one, then of its classes, each set encoded anew."""
    members = np.flatnonzero(prompts.points[:, 4] == source)
    sets = [[prompts.points[[index], :2] for index in members]]
    sets += [[prompts.points[index, :2]] for _, kind, index in prompts.groups if kind == source]
    made = []
    for one_encoding in sets:
        predictor = SamPredictor(sam)
        predictor.set_image(image)
        for points in one_encoding:
            masks, _, _ = predictor.predict(points, np.ones(len(points)))
            made += [_inclusive_box(mask) for mask in masks[1:]]
    return np.asarray(made, int).reshape(-1, 4)


def _inclusive_box(mask: np.ndarray) -> list[int]:
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max(), y.max()] if len(x) else [0, 0, 0, 0]


def _thin(boxes: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy NMS in list order, with the +1 of inclusive coordinates."""
    kept: list[int] = []
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    for i, box in enumerate(boxes):
        low, high = np.maximum(box[:2], boxes[kept, :2]), np.minimum(box[2:], boxes[kept, 2:])
        inter = np.maximum(high - low + 1, 0).prod(1)
        if not (inter > threshold * (area[i] + area[kept] - inter)).any():
            kept.append(i)
    return boxes[kept]


def equal_boxes(ours: Proposals, official: list[np.ndarray]) -> str:
    """How many boxes are equal, source by source; the official ones without empty masks."""
    parts = []
    for source, boxes in enumerate(official):
        expected = boxes[boxes.any(1)] + np.asarray([0, 0, 1, 1])
        found = ours.boxes[ours.source == source]
        same = len(found) == len(expected) and (found == expected).all()
        share = f"{len(found)} equal" if same else f"{len(found)} and {len(expected)}, DIFFERENT"
        parts.append(f"{SOURCES[source]} {share}")
    return "boxes: " + ", ".join(parts)


def sam_decoder() -> Entry:
    sam = random_vit_b()
    embedding = torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(0))
    position, points = sam.prompt_encoder.get_dense_pe(), torch.rand(16, 1, 2) * 1024
    sparse, dense = sam.prompt_encoder((points, torch.ones(16, 1)), None, None)

    def ours():
        return ImageDecoder(sam.mask_decoder, embedding, position, dense=dense[:1])(
            sparse, (1, 2, 3)
        )

    def theirs():
        with torch.no_grad():
            return sam.mask_decoder(embedding, position, sparse, dense, multimask_output=True)

    return Entry(
        "masks of 16 points, decoder of the published SAMs", ours, "MaskDecoder", other=theirs
    )


def sam_predictor() -> Entry:
    sam, image = random_vit_b(), random_image(0, 375, 500)
    points = random_prompts(0, 375, 500, grid_side=0, counts=(8, 0, 0)).points
    prompts = Prompts(np.zeros((0, 2)), points)

    def theirs():
        predictor = SamPredictor(sam)
        predictor.set_image(image)
        made = [predictor.predict(one[None, :2], np.ones(1))[0][1:] for one in points]
        return [NO_POINTS[:, :4], np.asarray([_inclusive_box(m) for two in made for m in two])]

    work = "8 points of a 375x500 image, ViT-B, one encoding"
    ours = lambda: propose(sam, image, prompts, config=ProposalConfig())  # noqa: E731
    return Entry(work, ours, "SamPredictor per point", other=theirs, agree=equal_boxes)


def sam_grid() -> Entry:
    sam, image = random_vit_b(), random_image(0, 375, 500)
    prompts = Prompts(dense_grid(16, 375, 500), NO_POINTS)
    work = "16x16 grid of a 375x500 image, ViT-B, thresholds .3/.3, NMS .3"
    theirs = lambda: official_procedure(sam, image, prompts)[:1]  # noqa: E731
    ours = lambda: propose(sam, image, prompts, config=ProposalConfig())  # noqa: E731
    return Entry(work, ours, "SamAutomaticMaskGenerator", other=theirs, agree=equal_boxes)


def sam_export() -> Entry:
    sam, image = random_vit_b(), random_image(0, 375, 500)
    prompts = random_prompts(0, 375, 500, grid_side=32, counts=(11, 11, 20))
    work = "1024 grid points, 42 peaks, 2 class-wise prompts (one class), 375x500, ViT-B, 1024 px"
    theirs = lambda: official_procedure(sam, image, prompts)  # noqa: E731
    ours = lambda: propose(sam, image, prompts, config=ProposalConfig())  # noqa: E731
    return Entry(work, ours, "official procedure, 6 encodings", other=theirs, agree=equal_boxes)


def sam_half() -> Entry:
    sam, image = random_vit_b(), random_image(0, 375, 500)
    prompts = Prompts(dense_grid(4, 375, 500), NO_POINTS)
    full = ProposalConfig(t_iou=-100.0, t_stab=0.0, grid_nms=1.0, with_masks=False)
    half = replace(full, encoder_dtype="bfloat16")

    def agreement(ours: Proposals, other: Proposals) -> str:
        found = box_agreement(other, ours)
        return f"boxes with IoU >= .9: {found.share:.3f} of {found.boxes}, {found.pixels:g} px"

    work = "encoding in bfloat16 and 4x4 grid, ViT-B"
    ours = lambda: propose(sam, image, prompts, config=half)  # noqa: E731
    other = lambda: propose(sam, image, prompts, config=full)  # noqa: E731
    return Entry(work, ours, "float32", other=other, agree=agreement)
