"""The whole pipeline on VOC07: from image-level tags to boxes, masks and a report.

    python -m experiments.voc07                      VOC2007 under $WEAKSAM_DATA or data/, else the
                                                     embedded mini set (about 12 minutes, 2 cores)
    python -m experiments.voc07 --data /path/to/VOCdevkit --out runs/voc07
    python -m experiments.voc07 --stages report --out runs/voc07
    python -m experiments.voc07 --config runs/voc07/settings.json --seed 1 --out runs/voc07-1

The same command with the same --out goes on where it was stopped. Stages: data, clues, proposals,
wsod, pgt, retrain (retrain_dino, too, with --retrain faster_rcnn,dino), masks, report;
retrain_without_drop runs only when --stages names it.
"""

import sys

from experiments.pipeline.commands import run
from experiments.pipeline.launch import main_job


def main(argv: list[str] | None = None) -> None:
    main_job("voc07", __doc__, argv)


if __name__ == "__main__":
    sys.exit(run("voc07"))
