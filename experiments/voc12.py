"""The whole pipeline on VOC12: from image-level tags to boxes, masks and a report.

    python -m experiments.voc12                      VOC2012 under $WEAKSAM_DATA or data/, else the
                                                     embedded mini set (about 12 minutes, 2 cores)
    python -m experiments.voc12 --data /path/to/VOCdevkit --out runs/voc12
    python -m experiments.voc12 --stages report --out runs/voc12
    python -m experiments.voc12 --config runs/voc12/settings.json --seed 1 --out runs/voc12-1

The same command with the same --out goes on where it was stopped. Stages: data, clues, proposals,
wsod, pgt, retrain (retrain_dino, too, with --retrain faster_rcnn,dino), masks, report;
retrain_without_drop runs only when --stages names it. AP50 is VOC's area under the curve. Splits:
train and val (the boxes of test are not public).
"""

import sys

from experiments.pipeline.commands import run
from experiments.pipeline.launch import main_job


def main(argv: list[str] | None = None) -> None:
    main_job("voc12", __doc__, argv)


if __name__ == "__main__":
    sys.exit(run("voc12"))
