"""The whole road on your own photos: from image-level tags to boxes, masks and a report.

    python -m experiments.custom --data PATH --out runs/mine

PATH is (a) a VOCdevkit-like folder (JPEGImages, Annotations, ImageSets/Main), (b) a COCO folder
(images/, annotations/*.json), or (c) images/ beside tags.csv with the columns file,tags,split:

    file,tags,split
    beach.jpg,dog;person,train
    empty.jpg,,train
    park.jpg,dog,test

Tags are separated by ";"; an image without tags is a negative. Nothing but tags is used for
training. Figures that need true boxes are left out where there are none.
"""

import sys

from weaksam_jax.cli import entry_point


def main(argv: list[str] | None = None) -> None:
    # Inside, so that Ctrl-C during these imports (both worlds, seconds) ends in one line.
    from experiments.pipeline.options import parse
    from experiments.pipeline.stages import travel
    from weaksam_jax.engine.distributed import start

    options = parse(argv, __doc__, "python -m experiments.custom")
    start()
    travel(options)


if __name__ == "__main__":
    sys.exit(entry_point(main))
