"""Result files for the VOC evaluation server."""

from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from weaksam_jax.data.detections import Results, as_arrays
from weaksam_jax.data.formats.checks import first_duplicate
from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_text
from weaksam_jax.text import file_name_of


def write_comp4(
    detections: Results, split: TagSplit | TruthSplit, folder: str | Path
) -> list[Path]:
    """Writes `comp4_det_<split>_<class>.txt` for every class (empty without detections).

    detections: COCO results; the split needs no annotations. A row is `<image> <confidence> <left>
    <top> <right> <bottom>`, as the devkit reads it: the image's file name without its suffix,
    pixels counted from 1 and the last one inside, so [x1 + 1, y1 + 1, x2, y2]. Best first, equal
    scores as they come, nine significant digits, which is all of a float32. (MIST's official code
    counts corners from 0, a pixel off, and writes three decimals of the score, which makes ties of
    most rows: docs/provenance/mil.md, section 4.)

    The file of a class is named by `weaksam_jax.text.file_name_of`, so that every class has its own
    in this folder. Raises `BadInput` for images that the files cannot name (`comp4_names`).

    For the server: results/VOC2012/Main/comp4_det_test_*.txt in one tar file.
    """
    names, found = comp4_names(split), as_arrays(detections, split)
    corners = found.boxes + np.asarray([1, 1, 0, 0])
    paths = []
    for name, own in zip(split.classes, found.of_classes(), strict=True):
        rows = [
            " ".join([names[found.image[i]], *(f"{v:.9g}" for v in (found.scores[i], *corners[i]))])
            for i in own[np.argsort(-found.scores[own], kind="stable")]
        ]
        paths.append(Path(folder) / f"comp4_det_{file_name_of(f'{split.split}_{name}')}.txt")
        write_text(paths[-1], "".join(f"{row}\n" for row in rows))
    return paths


def comp4_names(split: TagSplit | TruthSplit) -> list[str]:
    """The name of each image of a split in the server's files: without folder and suffix, which are
    written where two images have one name otherwise.

    Raises `BadInput` for a name with a blank, which stands between the columns of the files.
    """
    paths = [PurePosixPath(record.file_name) for record in split.records]
    names = [path.stem for path in paths]
    for longer in (lambda path: str(path.with_suffix("")), str):
        often = Counter(names)
        pairs = zip(names, paths, strict=True)
        names = [longer(path) if often[name] > 1 else name for name, path in pairs]
    twice, blank = first_duplicate(names), next((n for n in names if len(n.split()) != 1), None)
    if twice is not None or blank is not None:
        fault = f"{blank!r} has a blank" if twice is None else f"{twice!r} is the name of two"
        problem = f"image name {fault}, which files for the VOC server cannot hold"
        raise BadInput(f"{split.dataset}/{split.split}", problem, "rename the image")
    return names
