"""A metric of stored detections, masks or proposals against a data set's truth.

Or files for the VOC server, which has the truth of the test sets.

    python -m experiments.evaluate --detections runs/voc07/retrain/detections_test.json \\
        --data /path/to/VOCdevkit/VOC2007 --metric voc07
    python -m experiments.evaluate --detections detections.json --split test \\
        --data /path/to/VOCdevkit/VOC2012 --voc-files results/VOC2012/Main

Metrics: voc07 (AP50, 11 points), voc12 (AP50, area), coco (AP .50:.95), corloc (also by the
official script's convention), voc-segm (VOC AP of masks at IoU .25, .5, .7, .75), coco-segm, recall
(of proposals: a proposal store or COCO results). Prints the figures and a table of classes; --json
writes them. AP ignores difficult objects; recall counts them, as the paper's tables do, and
--no-difficult leaves them out. --voc-files writes comp4_det_<split>_<class>.txt (pixels counted
from 1, inclusive); the images of that split need no annotations.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from experiments.pipeline import metrics as measure
from experiments.pipeline.commands import run
from experiments.pipeline.runner import summary
from experiments.pipeline.server_files import write_server_files
from weaksam_jax.data.datasets import open_tags, open_truth, split_names
from weaksam_jax.data.detections import DetectionTable, Results, as_arrays, read_detections
from weaksam_jax.data.records import TruthSplit
from weaksam_jax.errors import BadInput, printable
from weaksam_jax.evaluate import (
    coco_ap,
    corloc,
    only_masked,
    proposal_recall,
    voc_ap,
    voc_mask_ap,
)
from weaksam_jax.files import write_json
from weaksam_jax.flags import parse
from weaksam_jax.outputs import OutFile, OutFolder

Metric = Literal["voc07", "voc12", "coco", "corloc", "voc-segm", "coco-segm", "recall"]


@dataclass(frozen=True)
class Evaluate:
    """Compares detections with the truth."""

    detections: Path
    """COCO results, a COCO annotation file (pgt.json), or a proposal store (recall)."""
    data: Path
    """The data set: VOCdevkit or COCO folder."""
    metric: Metric | None = None
    """Which figure; may be left out with --voc-files."""
    difficult: bool = True
    """recall: count difficult objects, as the paper does."""
    split: str | None = None
    """The split that was detected on [test; for corloc and recall train]."""
    json: OutFile | None = None
    """Where the figures are written as JSON."""
    voc_files: OutFolder | None = None
    """Folder for the files of the VOC evaluation server."""


def main(argv: list[str] | None = None) -> None:
    options = parse(Evaluate, argv, __doc__, name="evaluate")
    if options.metric is None and options.voc_files is None:
        raise BadInput("--metric", "is missing", "name a metric, or a folder with --voc-files")
    if options.voc_files is not None:
        paths = voc_files(options)
        print(f"{len(paths)} files such as {printable(paths[0])}")
    if options.metric is not None:
        result = evaluate(options)
        if options.json is not None:
            write_json(options.json, result, indent=1)
        print(table(result))


def voc_files(options: Evaluate) -> list[Path]:
    """Writes the server's files; needs images and no truth."""
    split = open_tags(options.data, options.split or split_names(options.data)["test"])
    found = read_detections(options.detections, split)
    return write_server_files(found, split, options.voc_files)


def evaluate(options: Evaluate) -> dict:
    """{"metric", "dataset", "split", and the metric's figures}; AP and CorLoc in percent."""
    if not options.difficult and options.metric != "recall":
        problem = f"has no meaning for --metric {options.metric}"
        raise BadInput("--no-difficult", problem, "leave it out; it is for --metric recall")
    role = "train" if options.metric in ("corloc", "recall") else "test"
    split = options.split or split_names(options.data)[role]
    truth = open_truth(options.data, split)
    if truth is None:
        hint = "give a data set with boxes (VOCdevkit or COCO folder)"
        raise BadInput(options.data, "has tags only, no truth to compare with", hint)
    if options.metric == "recall" and options.detections.is_dir():
        figures = store_recall(options, split, truth)
    else:
        masks = "needed" if "segm" in options.metric else "read"
        found = read_detections(options.detections, truth, masks=masks)
        figures = figures_of(options.metric, found, truth, difficult=options.difficult)
    head = {"metric": options.metric, "dataset": truth.dataset, "split": split}
    if options.metric == "recall":
        head["difficult"] = options.difficult
    return {**head, "images": len(truth.records), **figures}


def figures_of(
    metric: Metric, found: DetectionTable, truth: TruthSplit, difficult: bool = True
) -> dict:
    """The figures of COCO results; those of masks on the images that have true masks.

    difficult: whether such objects count in recall.
    """
    if metric in ("voc-segm", "coco-segm"):
        found, truth = only_masked(found, truth)
        if not truth.records:
            hint = "add SegmentationObject (VOC) or segmentation (COCO)"
            raise BadInput(f"{truth.dataset}/{truth.split}", "has no true masks", hint)
        figures = (
            voc_mask_ap(found, truth) if metric == "voc-segm" else coco_ap(found, truth, "segm")
        )
        return {"masked_images": len(truth.records), **figures}
    if metric in ("voc07", "voc12"):
        return voc_ap(found, truth, rule=metric.removeprefix("voc"))
    if metric == "recall":
        return results_recall(found, truth, difficult)
    return {"coco": coco_ap, "corloc": both_corlocs}[metric](found, truth)


def both_corlocs(found: DetectionTable, truth: TruthSplit) -> dict:
    """CorLoc, beside it that of the official script, and the classes of the first."""
    official = corloc(found, truth, convention="official")["corloc"]
    ours = corloc(found, truth)
    return {"corloc": ours["corloc"], "corloc_official": official, "per_class": ours["per_class"]}


def results_recall(found: Results, truth: TruthSplit, difficult: bool) -> dict:
    """Recall of COCO results as proposals: every class together, best score first."""
    arrays = as_arrays(found, truth)
    boxes = [
        arrays.xywh[own[np.argsort(-arrays.scores[own], kind="stable")]]
        for own in arrays.of_images()
    ]
    recall = proposal_recall(boxes, truth, difficult=difficult, form="xywh")
    return {"per_image": len(found) / len(truth.records), "recall": recall}


def store_recall(options: Evaluate, split: str, truth: TruthSplit) -> dict:
    """Recall of a proposal store, at several numbers of boxes, and of its masks."""
    tags = open_tags(options.data, split)
    splits, truths = {"train": tags}, {"train": truth}
    return measure.proposals(options.detections, splits, truths, difficult=options.difficult)


def table(result: dict) -> str:
    """The figures one a line, then the classes."""
    head = printable("{metric} on {dataset}/{split}, {images} images".format(**result))
    if "difficult" in result:
        head += f", {measure.counted(result['difficult'])}"
    skipped = ("metric", "dataset", "split", "images", "difficult", "per_class")
    figures = summary({name: value for name, value in result.items() if name not in skipped})
    classes = result.get("per_class", {})
    classes = {printable(name): value for name, value in classes.items()}
    width = max(map(len, classes), default=0)
    rows = [f"  {name:{width}}  {value:6.2f}" for name, value in classes.items()]
    return "\n".join([head, *(f"  {figure}" for figure in figures.split("  ")), *rows])


if __name__ == "__main__":
    sys.exit(run("evaluate"))
