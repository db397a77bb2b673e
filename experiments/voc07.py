"""The whole road on VOC07: from image-level tags to boxes, masks and a report.

    python -m experiments.voc07                      VOC2007 under $WEAKSAM_DATA or data/, else the
                                                     embedded mini set (about 12 minutes, 2 cores)
    python -m experiments.voc07 --data /path/to/VOCdevkit --out runs/voc07
    python -m experiments.voc07 --stages report --out runs/voc07

The same command with the same --out goes on where it was stopped. Stages: data, clues, proposals,
wsod, pgt, retrain, masks, report; retrain_without_drop runs only when --stages names it.
"""

import os
import sys
from pathlib import Path

from weaksam_jax.cli import entry_point


def find_voc07() -> Path | None:
    """A VOC2007 under $WEAKSAM_DATA or data/, whichever is there first."""
    for root in (os.environ.get("WEAKSAM_DATA"), "data"):
        for inner in ("VOCdevkit/VOC2007", "VOC2007", "VOCdevkit/VOCdevkit/VOC2007"):
            if root and (Path(root) / inner / "ImageSets" / "Main").is_dir():
                return Path(root) / inner
    return None


def main(argv: list[str] | None = None) -> None:
    # Inside, so that Ctrl-C during these imports (both worlds, seconds) ends in one line.
    from experiments.pipeline.options import parse
    from experiments.pipeline.stages import travel
    from weaksam_jax.engine.distributed import start

    options = parse(argv, __doc__, "python -m experiments.voc07", find_voc07)
    start()
    travel(options)


if __name__ == "__main__":
    sys.exit(entry_point(main))
