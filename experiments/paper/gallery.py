"""A run in rows: photo, peak points, proposals, pseudo boxes, masks, as one PNG.

    python -m experiments.paper.gallery --run runs/mini-mini --out docs/pictures/mini.png

Training images that show much, and the true boxes where the data set has them. The same run gives
the same picture.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.pipeline.commands import run
from experiments.pipeline.report import report_files
from experiments.pipeline.run import open_run
from weaksam_jax.errors import BadInput
from weaksam_jax.flags import parse
from weaksam_jax.outputs import OutFile
from weaksam_jax.ranges import Count
from weaksam_jax.report.gallery import save_gallery


@dataclass(frozen=True)
class Gallery:
    """Draws training images of a finished run."""

    run: Path
    """A finished run folder."""
    out: OutFile
    """The .png that is written."""
    images: Count = 4
    """Rows."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Gallery, argv, __doc__, name="paper.gallery")
    if options.out.suffix != ".png":
        raise BadInput("--out", f"{options.out} does not end in .png", "name a picture")
    made = open_run(options.run)
    train, truth = made.data.splits["train"], made.data.truths["train"]
    print(save_gallery(report_files(made), train, truth, out=options.out, images=options.images))


if __name__ == "__main__":
    sys.exit(run("paper.gallery"))
