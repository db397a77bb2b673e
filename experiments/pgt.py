"""Pseudo ground truth from any detections of a training split.

    python -m experiments.pgt --detections runs/voc07/wsod/detections_train.json \\
        --data /path/to/VOCdevkit/VOC2007 --out pgt.json
    python -m experiments.pgt --detections bbox.json --data VOC2012 --out voc_2012_trainval.json \\
        --rule official --format voc-dict

--detections: COCO results; image ids may also be the names of image files, with their suffix or
without ("000005", "2008_000008", as in wetectron's bbox.json, whose widths count the last pixel
(+1) and so are widths as they are here). Boxes of classes that an image has no tag of are dropped;
nothing but tags is read from the data set to make pseudo boxes.

--rule (its thresholds: --help-all): paper (Algorithm 2), best_kept (the same, but the best box of a
class stays and boxes around it go; docs/results.md compares the two), official and official_voc
(what the official script does on COCO and on VOC), pgf (SoS-WSOD, with its threshold of 0.2 and its
list of classes whose boxes may lie in one another, unless flags say otherwise), top_k. --format:
coco (an annotation file that pycocotools loads) or voc-dict, which the official VOC loaders read:
{"<id>": [{image_id, category_id from 0, bbox [x1, y1, x2, y2], score}]} with an entry for every
image.

Prints a quality sheet and writes it beside the output (<out>.sheet.json): boxes per image and per
tag, tags without a box and the spread of scores, and where the data set has boxes precision and
recall at IoU .5 (and .7, in the file), objects of which only a part was found and objects missed,
in all and by class. <out>.png shows pseudo boxes of a few images, which tags alone have chosen;
true boxes are dashed.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from experiments.pipeline.commands import run
from weaksam_jax.boxes import from_xywh
from weaksam_jax.data.datasets import open_tags, open_truth, split_names
from weaksam_jax.data.detections import as_arrays, label_of, read_detections
from weaksam_jax.data.images import load_image
from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.errors import BadInput, printable
from weaksam_jax.evaluate import pgt_quality
from weaksam_jax.files import check_replaced, read_json, write_json
from weaksam_jax.flags import FLAT, parse
from weaksam_jax.outputs import OutFile, check_files
from weaksam_jax.pgt import PgtConfig, make_pgt
from weaksam_jax.report.choose import showcase
from weaksam_jax.report.contact_sheet import contact_sheet
from weaksam_jax.report.draw import display_scale, draw_boxes, enlarge, is_own_png, save_png
from weaksam_jax.settings import to_plain

MADE_BY = "weaksam pgt"  # a sheet that says so may be made anew
SHOWN, COLUMNS = 12, 4  # images in the picture


@dataclass(frozen=True)
class Pgt:
    """Makes pseudo ground truth of detections and tags, and says how good it is."""

    detections: Path
    """COCO results of a detector on the split."""
    data: str
    """The data set: VOCdevkit, COCO folder, images/ + tags.csv, or tfds:NAME."""
    out: OutFile
    """The .json file that is written."""
    split: str | None = None
    """The split that was detected on [the data set's training split]."""
    format: Literal["coco", "voc-dict"] = "coco"
    """Layout of the output."""
    settings: Annotated[PgtConfig, FLAT] = field(default_factory=PgtConfig)
    """Which detections become pseudo boxes."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Pgt, argv, __doc__, name="pgt")
    out, sheet_path, picture_path = outputs(options)
    name = options.split or split_names(options.data)["train"]
    train, truth = open_tags(options.data, name), open_truth(options.data, name)
    made = make_pgt(read_detections(options.detections, train), train, options.settings)
    sheet = {
        "made_by": MADE_BY,
        "rule": to_plain(options.settings.resolved()),
        "tags": tag_sheet(made, train),
    }
    if truth is not None:
        tight = pgt_quality(made, truth, iou=0.7)
        shares = {"precision70": tight["precision50"], "recall70": tight["recall50"]}
        sheet["truth"] = pgt_quality(made, truth) | shares
    shown = picture(made, train, truth)  # may meet a broken image: before anything is written
    write_json(out, voc_dict(made, train) if options.format == "voc-dict" else made)
    write_json(sheet_path, sheet, indent=1)
    save_png(picture_path, shown)
    print(table(sheet))
    said = f"{len(made['annotations'])} boxes: {out}, sheet: {sheet_path}"
    print(printable(said), file=sys.stderr)


def outputs(options: Pgt) -> tuple[Path, Path, Path]:
    """The output, its sheet and its picture; `BadInput` when one cannot be or is the input, and
    when a sheet or picture would take the place of one that is not this command's."""
    if options.out.suffix != ".json":
        problem = f"{options.out} does not end in .json"
        raise BadInput("--out", problem, "name a file, e.g. pgt.json")
    paths = (options.out, options.out.with_suffix(".sheet.json"), options.out.with_suffix(".png"))
    for path in paths:
        if path.is_dir():
            raise BadInput("--out", f"{path} is a folder", "give another name")
        check_files("--out", path, {"--detections": options.detections, "--data": options.data})
    check_replaced(paths[1], _is_sheet)
    check_replaced(paths[2], is_own_png)
    return paths


def _is_sheet(path: Path) -> bool:
    """Whether a file is a sheet of this command."""
    try:
        found = read_json(path)
    except BadInput:
        return False
    return isinstance(found, dict) and found.get("made_by") == MADE_BY


def voc_dict(made: Mapping, train: TagSplit) -> dict[str, list[dict]]:
    """Pseudo ground truth as the official VOC loaders read it; ids without their underscore."""
    class_of = label_of(train)
    entries: dict[str, list[dict]] = {str(record.image_id): [] for record in train.records}
    for one in made["annotations"]:
        box = from_xywh(np.asarray(one["bbox"], np.float64)).tolist()
        entry = {"image_id": one["image_id"], "category_id": class_of[one["category_id"]]}
        entries[str(one["image_id"])].append({**entry, "bbox": box, "score": one["score"]})
    return entries


def tag_sheet(made: Mapping, train: TagSplit) -> dict:
    """What tags alone tell of pseudo boxes, in all and by class.

    tags: (image, class) pairs; boxes; boxes_per_image: of all images of the split; boxes_per_tag;
    without_box: tags that no box answers; score: the 5th, 50th and 95th percentile (None without
    boxes).
    """
    class_of = label_of(train)
    labels = np.asarray([class_of[one["category_id"]] for one in made["annotations"]], np.int64)
    scores = np.asarray([one["score"] for one in made["annotations"]], np.float64)
    tags = Counter(tag for record in train.records for tag in record.tags)
    pairs = {(one["image_id"], one["category_id"]) for one in made["annotations"]}
    answered = Counter(class_of[category] for _, category in pairs)

    def row(chosen: Sequence[int]) -> dict:
        own = np.isin(labels, chosen)
        boxes, total = int(own.sum()), sum(tags[label] for label in chosen)
        spread = np.percentile(scores[own], (5, 50, 95)).tolist() if boxes else None
        return {
            "tags": total,
            "boxes": boxes,
            "boxes_per_image": boxes / max(len(train.records), 1),
            "boxes_per_tag": boxes / max(total, 1),
            "without_box": total - sum(answered[label] for label in chosen),
            "score": spread,
        }

    everything = range(len(train.classes))
    each = {name: row([label]) for label, name in enumerate(train.classes)}
    return {**row(everything), "per_class": {k: v for k, v in each.items() if v["tags"]}}


def picture(made: Mapping, train: TagSplit, truth: TruthSplit | None) -> np.ndarray:
    """Pseudo boxes (and true ones, dashed) of `SHOWN` images: uint8 RGB."""
    found = as_arrays(made["annotations"], train)
    place = {record.image_id: index for index, record in enumerate(train.records)}
    truths = {} if truth is None else {record.image_id: record for record in truth.records}
    cells = []
    for record in showcase(train.records, SHOWN):
        own = found.image == place[record.image_id]
        boxes, labels, image = found.boxes[own], found.labels[own], load_image(record.path)
        scale = display_scale(image)
        drawn = enlarge(image, scale)
        if (true := truths.get(record.image_id)) is not None:
            how = {"dashed": [True] * len(true.boxes), "text": False}
            boxed = true.boxes * scale
            drawn = draw_boxes(drawn, boxed, true.labels, classes=train.classes, scale=1, **how)
        scores = found.scores[own]
        cells.append(
            draw_boxes(drawn, boxes * scale, labels, classes=train.classes, scores=scores, scale=1)
        )
    return contact_sheet(cells, COLUMNS)


def table(sheet: Mapping) -> str:
    """The sheet as text: a row for all classes together and one for each."""
    head = f"{'class':16} {'tags':>6} {'boxes':>6} {'per image':>9} {'per tag':>7} {'no box':>6}"
    head += f" {'score 5-50-95 %':>16}"
    truth = sheet.get("truth")
    if truth:
        head += f" {'prec.':>6} {'recall':>6} {'part':>6} {'missed':>6}"
    lines = [head]
    rows = [("all", sheet["tags"], truth)]
    for name, own in sheet["tags"]["per_class"].items():
        rows.append((name, own, truth and truth["per_class"].get(name)))
    for name, own, judged in rows:
        spread = "-" if own["score"] is None else "-".join(f"{one:.2f}" for one in own["score"])
        line = (
            f"{printable(name):16} {own['tags']:6} {own['boxes']:6} {own['boxes_per_image']:9.2f}"
        )
        line += f" {own['boxes_per_tag']:7.2f} {own['without_box']:6} {spread:>16}"
        if judged:
            line += f" {100 * judged['precision50']:6.1f} {100 * judged['recall50']:6.1f}"
            line += f" {judged['part_only']:6} {judged['missed']:6}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run("pgt"))
