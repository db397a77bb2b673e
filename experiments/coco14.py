"""The whole pipeline on COCO14: from image-level tags to boxes, masks and a report.

    python -m experiments.coco14                     a folder in $WEAKSAM_DATA or data/ with
                                                     annotations/instances_train2014.json, else the
                                                     embedded mini set (about 12 minutes, 2 cores)
    python -m experiments.coco14 --data /path/to/coco --out runs/coco14
    python -m experiments.coco14 --stages report --out runs/coco14
    python -m experiments.coco14 --config runs/coco14/settings.json --seed 1 --out runs/coco14-1

The same command with the same --out goes on where it was stopped. Stages: data, clues, proposals,
wsod, pgt, retrain (retrain_dino, too, with --retrain faster_rcnn,dino), masks, report;
retrain_without_drop runs only when --stages names it. AP50 is COCO's, at 101 points of recall.
"""

import sys

from experiments.pipeline.commands import run
from experiments.pipeline.launch import main_job


def main(argv: list[str] | None = None) -> None:
    main_job("coco14", __doc__, argv)


if __name__ == "__main__":
    sys.exit(run("coco14"))
