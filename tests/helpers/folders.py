"""Small data sets written by hand, for the readers' tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, width: int = 20, height: int = 10, **options) -> Path:
    """A noisy RGB image of that size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def voc_object(name: str, box=(1, 1, 5, 5), difficult: int = 0) -> str:
    corners = "".join(
        f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{corners}</bndbox><part><name>head</name></part></object>"
    )


def write_voc(root: Path, splits: dict[str, dict[str, list[str]]]) -> Path:
    """A VOC folder from split -> image name -> `<object>` texts; images are 20 x 10."""
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, images in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(images) + "\n")
        for name, objects in images.items():
            write_image(root / "JPEGImages" / f"{name}.jpg")
            text = f"<annotation>{''.join(objects)}</annotation>"
            (root / "Annotations" / f"{name}.xml").write_text(text)
    return root


def coco_json() -> dict:
    """Two images of 20 x 10; a polygon, a compressed and an uncompressed RLE, a crowd."""
    square = {"size": [10, 20], "counts": [25, 5, 5, 5, 160]}  # rows 5..9 of columns 2 and 3
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 20, "height": 10},
            {"id": 3, "file_name": "b.jpg", "width": 20, "height": 10},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "iscrowd": 0, "bbox": [2, 1, 6, 4],
             "segmentation": [[2, 1, 8, 1, 8, 5, 2, 5]]},
            {"id": 2, "image_id": 7, "category_id": 4, "iscrowd": 1, "bbox": [2, 5, 2, 5],
             "segmentation": square},
            {"id": 3, "image_id": 7, "category_id": 9, "iscrowd": 0, "bbox": [0, 0, 20, 10]},
        ],
    }  # fmt: skip


def write_coco(root: Path, data: dict | None = None, name: str = "instances_train2017") -> Path:
    """A COCO folder with one split."""
    data = coco_json() if data is None else data
    for image in data["images"]:
        write_image(root / "images" / image["file_name"])
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"{name}.json").write_text(json.dumps(data))
    return root


def write_csv(root: Path, rows: list[str], header: str = "file,tags,split") -> Path:
    """`images/` + tags.csv; every named file is written as an image."""
    for row in rows:
        name = row.split(",")[0].strip()
        if name:
            write_image(root / "images" / name)
    root.mkdir(parents=True, exist_ok=True)
    (root / "tags.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return root
