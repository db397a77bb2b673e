"""Result files for the VOC evaluation server."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from weaksam_jax.data.detections import as_arrays
from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.files import write_text


def write_comp4(
    detections: Sequence[Mapping], split: TagSplit | TruthSplit, folder: str | Path
) -> list[Path]:
    """Writes `comp4_det_<split>_<class>.txt` for every class (empty without detections).

    detections: COCO results; the split needs no annotations. A row is `<image> <confidence> <left>
    <top> <right> <bottom>`, as the devkit reads it: the image's file name without its suffix,
    pixels counted from 1 and the last one inside, so [x1 + 1, y1 + 1, x2, y2]. Best first, equal
    scores as they come, nine significant digits, which is all of a float32. (MIST's official code
    counts corners from 0, a pixel off, and writes three decimals of the score, which makes ties of
    most rows: docs/provenance/mil.md, section 4.)

    For the server: results/VOC2012/Main/comp4_det_test_*.txt in one tar file.
    """
    found = as_arrays(detections, split)
    corners = found.boxes + np.asarray([1, 1, 0, 0])
    names = [Path(record.file_name).stem for record in split.records]
    order = np.argsort(-found.scores, kind="stable")
    paths = []
    for label, name in enumerate(split.classes):
        rows = [
            " ".join([names[found.image[i]], *(f"{v:.9g}" for v in (found.scores[i], *corners[i]))])
            for i in order[found.labels[order] == label]
        ]
        paths.append(Path(folder) / f"comp4_det_{split.split}_{name}.txt")
        write_text(paths[-1], "".join(f"{row}\n" for row in rows))
    return paths
