"""The small valid inputs that are mutated."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (32, 24)  # width, height of every image
NAMES = ("000001", "000002", "000003", "000004")
CLASSES = ("cat", "dog")


def write_images(folder: Path, names=NAMES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.jpg")


def boxes_of(number: int) -> list[tuple[str, tuple[int, int, int, int], int]]:
    """(class, corners counted from 1, difficult) of the objects of an image."""
    first = (CLASSES[number % 2], (3 + number, 4, 14 + number, 15), 0)
    second = (CLASSES[(number + 1) % 2], (16, 8, 30, 20), int(number == 2))
    return [first, second]


def xml_of(number: int) -> str:
    rows = []
    for name, corners, difficult in boxes_of(number):
        sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
        rows.append(
            f"<object>\n<name>{name}</name>\n<difficult>{difficult}</difficult>\n"
            f"<bndbox>{box}</bndbox>\n</object>\n"
        )
    return f'<?xml version="1.0"?>\n<annotation>\n{"".join(rows)}</annotation>\n'


def write_voc(root: Path) -> Path:
    write_images(root / "JPEGImages")
    lists = {"train": NAMES[:2], "val": NAMES[2:]}
    for name, number in zip(NAMES, range(4), strict=True):
        path = root / "Annotations" / f"{name}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(xml_of(number))
    for split, names in lists.items():
        path = root / "ImageSets" / "Main" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names) + "\n")
    return root


def coco_json() -> dict:
    """Boxes, and a mask of every form."""
    annotations = []
    for number in range(4):
        for name, (x1, y1, x2, y2), _ in boxes_of(number):
            box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": 3 + CLASSES.index(name),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "segmentation": segmentation(box, len(annotations) % 2),
                }
            )
    width, height = SIZE
    images = [
        {"id": i + 1, "file_name": f"{name}.jpg", "width": width, "height": height}
        for i, name in enumerate(NAMES)
    ]
    categories = [{"id": 3 + i, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def segmentation(box: list, polygon: bool) -> list | dict:
    """A rectangle as a polygon, or as uncompressed RLE."""
    x, y, width, height = box
    if polygon:
        return [[x, y, x + width, y, x + width, y + height, x, y + height]]
    mask = np.zeros((SIZE[1], SIZE[0]), bool)
    mask[y : y + height, x : x + width] = True
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], ends, [mask.size]])).tolist()
    return {"size": [SIZE[1], SIZE[0]], "counts": counts}


def write_coco(root: Path, data: bytes | None = None) -> Path:
    write_images(root / "images")
    path = root / "annotations" / "instances_val.json"
    path.parent.mkdir()
    path.write_bytes(json.dumps(coco_json()).encode() if data is None else data)
    return root


def results() -> list[dict]:
    """Detections of the COCO set: some right, some beside, with masks."""
    rows = []
    for one in coco_json()["annotations"]:
        score = 0.9 - 0.07 * one["id"]
        x, y, width, height = one["bbox"]
        box = [x + 1, y, width, height] if one["id"] % 3 else [max(0, x - 9), y, width, height]
        mask = segmentation([round(v) for v in box], polygon=False)
        row = {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": box}
        rows.append({**row, "score": round(score, 3), "segmentation": mask})
    return rows


def voc_results() -> list[dict]:
    """The same for VOC's val, images 3 and 4, whose categories are 1 and 2."""
    rows = [{**row, "category_id": row["category_id"] - 2} for row in results()]
    return [row for row in rows if row["image_id"] > 2]


def write_csv(root: Path) -> Path:
    write_images(root / "images")
    (root / "tags.csv").write_text(csv_text())
    return root


def csv_text() -> str:
    rows = [
        f"{name}.jpg,{CLASSES[i % 2]},{'train' if i < 2 else 'test'}"
        for i, name in enumerate(NAMES)
    ]
    return "\n".join(["file,tags,split", *rows]) + "\n"
