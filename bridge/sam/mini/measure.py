"""Measure a sam_mini: mask IoU on held-out scenes, box recall of proposals on a VOCdevkit.

python -m bridge.sam.mini.measure --name sam_mini --scenes 100
python -m bridge.sam.mini.measure --name sam_mini_lite --voc VOC2007 --list test --images 60
"""

from __future__ import annotations

import argparse
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

import bridge.runtime.torchvision_ops  # noqa: F401  (before segment_anything: see there)

# isort: split
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from bridge.runtime.torchvision_ops import nms
from bridge.sam.mini.batches import point_in
from bridge.sam.mini.model import load_sam_mini
from bridge.sam.mini.scenes import draw_scene

RECALL_AT = (0.5, 0.75, 0.9)


# ------------------------------------------------------------------------------- scenes


def mask_iou(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """IoU of masks bool [..., h, w], broadcast."""
    either = (found | true).sum((-1, -2))
    return (found & true).sum((-1, -2)) / np.maximum(either, 1)


def measure_scene(predictor: SamPredictor, seed: int) -> list[tuple[float, ...]]:
    """For every mask of scene `seed`: IoU by box, by point (told best, true best), told IoU, its
    truth, and the best IoU of an output with any of the nested masks that hold the point (a point
    alone cannot say which of them is meant)."""
    image, masks = draw_scene(seed)
    rng = np.random.default_rng(seed)
    rows = []
    predictor.set_image(image)
    for mask in masks:
        y, x = np.nonzero(mask)
        box = np.array([x.min(), y.min(), x.max(), y.max()])
        boxed, _, _ = predictor.predict(box=box, multimask_output=False)
        point = np.array([point_in(rng, mask)])
        found, told, _ = predictor.predict(point, np.ones(1), multimask_output=True)
        true = mask_iou(found, mask)
        best = int(told.argmax())
        nearest = mask_iou(found[best], masks).max()
        x, y = point[0]
        held = mask_iou(found[:, None], masks[None, masks[:, y, x]]).max()
        rows.append((mask_iou(boxed[0], mask), true[best], true.max(), told[best], nearest, held))
    return rows


def measure_scenes(sam: Sam, seeds: range) -> dict[str, float]:
    """Means over all masks of the scenes; seeds below 1 000 000 were never trained on."""
    predictor = SamPredictor(sam)
    rows = np.array([row for seed in seeds for row in measure_scene(predictor, seed)])
    names = (
        "box",
        "point_told_best",
        "point_oracle",
        "told_iou",
        "true_iou_of_told_best",
        "point_any",
    )
    means = dict(zip(names, rows.mean(0).tolist(), strict=True))
    return means | {"told_error": float(np.abs(rows[:, 3] - rows[:, 4]).mean()), "masks": len(rows)}


# ------------------------------------------------------------------------------- photos


def grid_points(height: int, width: int, side: int) -> np.ndarray:
    """Cell centres of a side x side grid over the image: [side^2, 2] as x, y."""
    middle = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(middle * width, middle * height), -1).reshape(-1, 2)


@torch.no_grad()
def decode_points(predictor: SamPredictor, points: np.ndarray) -> tuple[Tensor, Tensor]:
    """Low-resolution logits [P, 3, h, w] and predicted IoU [P, 3] of single-point prompts."""
    sam = predictor.model
    at = predictor.transform.apply_coords(points, predictor.original_size)
    labelled = torch.as_tensor(at, dtype=torch.float32)[:, None], torch.ones(len(points), 1)
    sparse, dense = sam.prompt_encoder(points=labelled, boxes=None, masks=None)
    return sam.mask_decoder(
        image_embeddings=predictor.features,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )


def stability(logits: Tensor, offset: float = 1.0) -> Tensor:
    """|logit > offset| / |logit > -offset| of [n, h, w]: [n], 0 for empty masks (as SAM)."""
    return (logits > offset).sum((1, 2)) / (logits > -offset).sum((1, 2)).clamp(min=1)


def boxes_of(masks: Tensor) -> Tensor:
    """Tight boxes x0, y0, x1, y1 (exclusive ends) of masks bool [n, h, w]; zeros if empty."""
    columns, rows = masks.any(1), masks.any(2)
    ends = []
    for line in (columns, rows):
        line = line.int()
        ends.append((line.argmax(1), line.shape[1] - line.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1], 1).float() * masks.any(2).any(1)[:, None]


def grid_proposals(
    sam: Sam, image: np.ndarray, side: int = 16, suppress: float = 0.7, power: float = 1.0
) -> np.ndarray:
    """Boxes [n, 4] in image pixels, best first, from a side x side grid of points.

    Works on the low-resolution masks (upsampled twice), which is enough for boxes and far
    cheaper than full masks. Ranked by predicted IoU x stability^power, then NMS.
    """
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    logits, told = decode_points(predictor, grid_points(*image.shape[:2], side))
    logits, told = logits.flatten(0, 1), told.flatten()
    inside_h, inside_w = predictor.input_size
    step = sam.image_encoder.img_size / logits.shape[-1]
    logits = logits[:, : round(inside_h / step), : round(inside_w / step)]
    score = told * stability(logits) ** power
    score = score * (logits > 0).flatten(1).any(1)
    best = score.argsort(descending=True)
    large = torch.nn.functional.interpolate(
        logits[best, None], scale_factor=2, mode="bilinear", align_corners=False
    )[:, 0]
    boxes = boxes_of(large > 0)
    boxes = boxes * (max(image.shape[:2]) / sam.image_encoder.img_size * step / 2)
    return boxes[nms(boxes, score[best], suppress)].numpy()


def selective_search(image: np.ndarray) -> np.ndarray:
    """OpenCV's selective search, fast mode, in its own order: boxes [n, 4] as x0 y0 x1 y1."""
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    search.switchToSelectiveSearchFast()
    boxes = search.process().astype(float)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def true_boxes(annotation: Path) -> np.ndarray:
    """Boxes of the objects that are not difficult: [n, 4], VOC's 1-based ends made 0-based."""
    boxes = []
    for thing in ElementTree.parse(annotation).getroot().iter("object"):
        if thing.findtext("difficult", "0") == "0":
            corner = [float(thing.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin")]
            far = [float(thing.findtext(f"bndbox/{k}")) for k in ("xmax", "ymax")]
            boxes.append([corner[0] - 1, corner[1] - 1, *far])
    return np.array(boxes).reshape(-1, 4)


def best_overlap(true: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Largest IoU of every true box [n, 4] with the found ones [m, 4]: [n]."""
    if len(found) == 0:
        return np.zeros(len(true))
    low = np.maximum(true[:, None, :2], found[None, :, :2])
    high = np.minimum(true[:, None, 2:], found[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    area = [np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (true, found)]
    return (shared / (area[0][:, None] + area[1] - shared)).max(1)


def measure_photos(propose, voc: Path, names: list[str], budgets: tuple[int, ...]) -> None:
    """Print recall at `RECALL_AT` for every budget of boxes, and the mean time per image."""
    overlaps: dict[int, list] = {n: [] for n in budgets}
    spent, number = 0.0, []
    for name in names:
        image = cv2.imread(str(voc / "JPEGImages" / f"{name}.jpg"))[..., ::-1].copy()
        true = true_boxes(voc / "Annotations" / f"{name}.xml")
        begun = time.perf_counter()
        boxes = propose(image)
        spent += time.perf_counter() - begun
        number.append(len(boxes))
        for n in budgets:
            overlaps[n].append(best_overlap(true, boxes[:n]))
    for n, values in overlaps.items():
        joined = np.concatenate(values)
        recall = " / ".join(f"{(joined >= t).mean():.3f}" for t in RECALL_AT)
        print(f"  first {n}: recall@.5/.75/.9 {recall}  ({len(joined)} objects)")
    print(f"  {np.mean(number):.0f} boxes and {spent / len(names):.2f} s per image", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--name", default="sam_mini")
    add("--weights", help="safetensors file instead of the package's")
    add("--scenes", type=int, default=0, help="number of held-out scenes")
    add("--voc", type=Path, help="a VOC folder with JPEGImages, Annotations, ImageSets")
    add("--list", default="test")
    add("--images", type=int, default=60)
    add("--side", type=int, default=16, help="points along a side of the grid")
    add("--suppress", type=float, default=0.7, help="IoU above which NMS drops a box")
    add("--selective-search", action="store_true", help="measure that too, for comparison")
    add("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    sam = load_sam_mini(options.name, options.weights)
    if options.scenes:
        for key, value in measure_scenes(sam, range(options.scenes)).items():
            print(f"  {key} {value:.3f}")
    if options.voc:
        names = (options.voc / "ImageSets/Main" / f"{options.list}.txt").read_text().split()
        names, budgets = names[: options.images], (150, 250, 1000)
        print(options.name)
        measure_photos(
            lambda image: grid_proposals(sam, image, options.side, suppress=options.suppress),
            options.voc, names, budgets=budgets,
        )  # fmt: skip
        if options.selective_search:
            print("selective search")
            measure_photos(selective_search, options.voc, names, budgets=budgets)


if __name__ == "__main__":
    main()
