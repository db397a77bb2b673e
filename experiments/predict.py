"""Boxes, masks and pictures of new photos, from a finished run.

    python -m experiments.predict --run runs/mine photo1.jpg photo2.jpg --out predictions

Writes predictions.json (COCO results: boxes, scores, masks) and a picture of each photo.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from weaksam_jax.cli import entry_point
from weaksam_jax.errors import BadInput
from weaksam_jax.files import atomic_path, read_json, write_json


@dataclass(frozen=True)
class Predict:
    """Detects with a run's retrained detector; SAM turns the boxes into masks."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Photos."""
    run: Path
    """A finished run directory (stage retrain)."""
    out: Path
    """Folder for predictions.json and the pictures."""
    threshold: float = 0.3
    """Least score of a detection that is kept."""
    masks: bool = True
    """Prompt SAM with the boxes for masks."""


def main(argv: list[str] | None = None) -> None:
    from weaksam_jax.engine.compilation_cache import enable_compilation_cache

    options = tyro.cli(
        Predict, args=argv, description=__doc__, prog="python -m experiments.predict"
    )
    enable_compilation_cache()
    results = predict(options)
    write_json(options.out / "predictions.json", results, indent=1)
    print(f"{len(results)} objects on {len(options.images)} photos: {options.out}")


def predict(options: Predict) -> list[dict]:
    """Detects, adds masks, writes a picture a photo; returns COCO results."""
    from weaksam_jax.detectors.faster_rcnn.detect import detect_retrain

    from experiments.pipeline.clues import fresh_logits
    from experiments.pipeline.config import RoadSettings, restore
    from weaksam_jax.data.images import image_size
    from weaksam_jax.data.records import TagRecord, TagSplit
    from weaksam_jax.engine.checkpoint import load_params

    pgt_path = options.run / "pgt" / "pgt.json"
    if not pgt_path.exists():
        raise BadInput(options.run, "is no finished run", "give the --out of a finished run")
    stored = read_json(options.run / "settings.json")
    settings = restore(RoadSettings, stored["settings"])
    categories = read_json(pgt_path)["categories"]
    records = tuple(
        TagRecord(number, path.name, path, *image_size(path), ())
        for number, path in enumerate(options.images, 1)
    )
    split = TagSplit(
        "photos",
        "predict",
        tuple(one["name"] for one in categories),
        tuple(one["id"] for one in categories),
        records,
    )
    params = load_params(options.run / "retrain" / "params.safetensors")
    asked = settings.retrain.tag_power
    logits = fresh_logits(settings, options.run, split) if asked else None
    found = detect_retrain(params, split, settings.retrain, tag_logits=logits)
    results = [one for one in found if one["score"] >= options.threshold]
    if options.masks:
        add_masks(results, split, settings.sam)
    for record in records:
        mine = [one for one in results if one["image_id"] == record.image_id]
        draw(record, mine, split, options.out)
    return results


def add_masks(results: list[dict], split, sam_name: str) -> None:
    """Puts `segmentation` (RLE) into the results: SAM prompted by each box."""
    from bridge.sam.networks import load_sam
    from bridge.sam.packed_masks import encode_rle
    from bridge.sam.pseudo_masks import MaskSettings, box_masks
    from weaksam_jax.boxes import from_xywh
    from weaksam_jax.data.images import load_image

    sam = load_sam(sam_name)
    for record in split.records:
        mine = [one for one in results if one["image_id"] == record.image_id]
        if mine:
            boxes = from_xywh(np.asarray([one["bbox"] for one in mine], np.float32))
            packed, _, _ = box_masks(sam, load_image(record.path), boxes, MaskSettings(empty="box"))
            for one, counts in zip(mine, encode_rle(packed, record.width), strict=True):
                size = [record.height, record.width]
                one["segmentation"] = {"size": size, "counts": counts.decode()}


def draw(record, results: list[dict], split, out: Path) -> None:
    """Writes `<out>/<name>.png`: the photo with masks and boxes."""
    from PIL import Image

    from weaksam_jax.boxes import from_xywh
    from weaksam_jax.data.images import load_image
    from weaksam_jax.report.draw import class_colors, display_scale, draw_boxes, draw_masks, enlarge

    image = load_image(record.path)
    colors = class_colors(len(split.classes))
    scale = display_scale(image)
    picture = enlarge(image, scale)
    labels = np.asarray([split.category_ids.index(one["category_id"]) for one in results], int)
    boxes = from_xywh(np.asarray([one["bbox"] for one in results], np.float32).reshape(-1, 4))
    masks = [one["segmentation"] for one in results if "segmentation" in one]
    if masks:
        picture = draw_masks(image, masks, labels, colors, scale=scale)
    scores = [one["score"] for one in results]
    picture = draw_boxes(picture, boxes * scale, labels, split.classes, scores, scale=1)
    with atomic_path(out / f"{record.image_id:04d}-{record.path.stem}.png") as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


if __name__ == "__main__":
    sys.exit(entry_point(main))
