"""The whole pipeline on your own photos: from image-level tags to boxes, masks and a report.

    python -m experiments.custom --data PATH --out runs/mine

PATH is (a) a VOCdevkit-like folder (JPEGImages, Annotations, ImageSets/Main), (b) a COCO folder
(images/, annotations/*.json), or (c) images/ beside tags.csv with the columns file,tags,split:

    file,tags,split
    beach.jpg,dog;person,train
    empty.jpg,,train
    park.jpg,dog,test

Tags are separated by ";"; an image without tags is a negative. Nothing but tags is used for
training. Figures that need true boxes are left out where there are none. The same command with the
same --out goes on where it was stopped; --config runs/mine/settings.json repeats or varies a run.

Stages: data, clues, proposals, wsod, pgt, retrain (retrain_dino, too, with --retrain
faster_rcnn,dino), masks, report; retrain_without_drop runs only when --stages names it.
"""

import sys

from experiments.pipeline.commands import run
from experiments.pipeline.launch import main_job


def main(argv: list[str] | None = None) -> None:
    main_job("custom", __doc__, argv)


if __name__ == "__main__":
    sys.exit(run("custom"))
