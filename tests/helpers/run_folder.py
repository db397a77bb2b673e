"""A small run folder of every kind of file, written by hand."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from weaksam_jax.data.records import TagRecord, TagSplit, TruthRecord, TruthSplit
from weaksam_jax.data.store import Proposals, write_proposals, write_stored
from weaksam_jax.files import write_json
from weaksam_jax.report.artefacts import RunFiles

CLASSES = ("cat & <b>dog</b>", "owl")
IDS = (11, 22)
WIDTH, HEIGHT = 48, 36
BOXES = np.array([[4, 4, 20, 30], [24, 6, 44, 28]], np.float32)


def splits(folder: Path) -> tuple[TagSplit, TagSplit, TruthSplit, TruthSplit]:
    """Four training and three test images; every image has one object of each class."""
    made = []
    for name, ids in (("trainval", range(1, 5)), ("test", range(101, 104))):
        tags = tuple(_record(folder, image_id) for image_id in ids)
        truth = tuple(
            TruthRecord(
                *(r.image_id, r.file_name, r.path, r.width, r.height),
                boxes=BOXES,
                labels=np.array([0, 1], np.int32),
                difficult=np.zeros(2, bool),
                crowd=np.zeros(2, bool),
            )
            for r in tags
        )
        made.append(TagSplit("tiny", name, CLASSES, IDS, tags))
        made.append(TruthSplit("tiny", name, CLASSES, IDS, truth))
    return made[0], made[2], made[1], made[3]


def _record(folder: Path, image_id: int) -> TagRecord:
    path = folder / "images" / f"{image_id} <i>.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(image_id).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return TagRecord(image_id, path.name, path, WIDTH, HEIGHT, (0, 1))


def results(split: TagSplit, labels=(0, 1), score: float = 0.9) -> list[dict]:
    """Perfect detections of the objects with these labels."""
    return [
        {
            "image_id": record.image_id,
            "category_id": IDS[label],
            "bbox": [float(v) for v in (*BOXES[label][:2], *(BOXES[label][2:] - BOXES[label][:2]))],
            "score": score,
        }
        for record in split.records
        for label in labels
    ]


def annotations(split: TagSplit, labels=(0, 1), masks: bool = False) -> dict:
    """A COCO annotation file of the same objects."""
    rows = results(split, labels)
    if masks:
        for row in rows:
            x, y, w, h = (int(v) for v in row["bbox"])
            mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
            mask[y : y + h, x : x + w] = 1
            rle = coco_mask.encode(mask)
            row["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    return {"images": [], "categories": [], "annotations": rows}


def metrics() -> dict:
    """metrics.json with known figures, unknown ones, and figures by class."""
    per_class = {CLASSES[0]: 12.5, CLASSES[1]: 62.5}
    quality = {"precision50": 0.8, "recall50": 0.5, "objects": 8, "found": 4}
    quality |= {"part_only": 1, "missed": 3, "per_image": 1.0}
    recall = {"0.50": 0.91, "0.75": 0.5, "0.90": 0.1}
    return {
        "dataset": {"name": "tiny <set>", "train_images": 4, "test_images": 3, "classes": 2},
        "seed": 7,
        "versions": {"jax": "9.9.9"},
        "seconds": {"data": 1.0, "wsod": 75.0, "retrain": 3720.0},
        "proposals": {"per_image": 40.0, "recall": recall, "recall_at": {"25": recall}},
        "wsod": {"ap50": 37.5, "ap": 20.0, "corloc": 61.25, "per_class": per_class},
        "pgt": quality,
        "pgt_top1": quality,
        "retrain": {"ap50": 44.25, "ap": 23.0, "per_class": per_class},
        "strange": {"deep": {"figure": 0.125, "word": "<u>"}},
    }


def files(run: Path, proposals: Path | None = None) -> RunFiles:
    """Where the parts of such a folder are. proposals: a store elsewhere."""
    return RunFiles(
        root=run,
        page=run / "report" / "index.html",
        settings=run / "settings.json",
        metrics=run / "metrics.json",
        log=run / "log.jsonl",
        clues=run / "clues",
        proposals=proposals or run / "proposals",
        mil=run / "wsod" / "detections_test.json",
        pgt=run / "pgt" / "pgt.json",
        top1=run / "pgt" / "top1.json",
        retrain=run / "retrain" / "detections_test.json",
        masks=run / "masks" / "pseudo.json",
    )


def fill(run: Path, train: TagSplit, test: TagSplit) -> Path:
    """Everything that a whole run writes and the report reads."""
    write_json(run / "settings.json", {"preset": "mini", "proposals": "sam", "seed": 7})
    write_json(run / "metrics.json", metrics())
    write_json(run / "wsod/detections_train.json", results(train))
    write_json(run / "wsod/detections_test.json", results(test, (0,)))
    write_json(run / "retrain/detections_test.json", results(test))
    write_json(run / "pgt/pgt.json", annotations(train))
    write_json(run / "pgt/top1.json", annotations(train, (1,)))
    write_json(run / "masks/pseudo.json", annotations(train, masks=True))
    lines = [
        {"stage": stage, "step": 20 * step, "loss": 1 / step, "images_per_s": 10.0 + step}
        for stage in ("mil", "retrain")
        for step in range(1, 4)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for record in train.records:
        _arrays(run, train, record)
    return run


def _arrays(run: Path, train: TagSplit, record: TagRecord) -> None:
    points = np.array([[12, 17, 0.9, 0, 2], [34, 17, 0.8, 1, 3]], np.float32)
    maps = np.random.default_rng(0).random((2, 9, 12)).astype(np.float16)
    clues = {"coarse": maps, "fine": maps, "class_ids": np.array([0, 1], np.int32)}
    clues |= {"class_logits": np.zeros(2, np.float32), "points": points}
    place = run / "clues", train.split, record.image_id
    write_stored(*place, arrays=clues, metadata={})
    found = Proposals(
        record.image_id,
        HEIGHT,
        WIDTH,
        BOXES,
        source=np.array([0, 2]),
        prompt=np.array([-1, 0]),
        token=np.zeros(2),
        predicted_iou=np.ones(2),
        stability=np.ones(2),
        masks=None,
        points=points,
    )
    write_proposals(run / "proposals", train.split, found, {})
