"""Boxes, masks and pictures of new photos, from a finished run.

    python -m experiments.predict --run runs/mine beach.jpg park.jpg --out predictions
    python -m experiments.predict --run runs/mine holiday/ 'more/**/*.jpg' --out predictions

Takes photos, folders (with all that is in them) and globs, any number of photos: they are worked
off a few at a time. Files of a folder that are no images by their suffix are counted on stderr; a
name that begins with "-" is given as ./-name. Writes a picture of each photo, named after it
(beach.jpg: beach.png; photos of one name in several folders: a/beach.png, b/beach.png), and at the
end predictions.json: COCO results (file_name, category_id, bbox, score, segmentation), one object
per line.

The run may be a stranger's: files of weights that it names outside of its own folder are not read
unless --sam or --clues names them.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.pipeline.commands import run
from weaksam_jax.errors import printable
from weaksam_jax.files import atomic_path, check_replaced
from weaksam_jax.flags import parse
from weaksam_jax.locks import locked
from weaksam_jax.outputs import OutFolder
from weaksam_jax.progress import progress_bar
from weaksam_jax.ranges import Share


@dataclass(frozen=True)
class Predict:
    """Detects with a run's retrained detector; SAM turns the boxes into masks."""

    photos: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Photos, folders of photos, or globs."""
    run: Path
    """A finished run folder (stage retrain)."""
    out: OutFolder
    """Folder for predictions.json and the pictures."""
    threshold: Share = 0.3
    """Least score of a detection that is kept."""
    masks: bool = True
    """Prompt SAM with the boxes for masks."""
    sam: str | None = None
    """SAM in place of the run's, as in the main jobs; needed where that is a file elsewhere."""
    detector: str | None = None
    """Of several that the run retrained: faster_rcnn, dino [the first of its --retrain]."""
    clues: Path | None = None
    """Weights of the clue network in place of the run's (for a config with test.tag_power)."""


def main(argv: Sequence[str] | None = None) -> None:
    from weaksam_jax.engine.compilation_cache import enable_compilation_cache

    options = parse(Predict, argv, __doc__, name="predict")
    enable_compilation_cache()
    objects, photos = predict(options)
    print(f"{objects} objects on {photos} photos: {printable(options.out)}")


def predict(options: Predict) -> tuple[int, int]:
    """Detects, adds masks, writes one picture per photo; returns the numbers of objects and photos.

    Raises `BadInput` before anything is written for a run that is not finished and for what is no
    photo.
    """
    from experiments.pipeline.photos import find_photos, passed_over
    from experiments.pipeline.predictor import open_predictor
    from weaksam_jax.report.draw import is_own_png

    networks = {"sam": options.sam, "clues": options.clues, "detector": options.detector}
    predictor = open_predictor(options.run, options.threshold, options.masks, **networks)
    photos = find_photos(options.photos, options.out)
    if others := passed_over(options.photos, options.out):
        kinds = ", ".join(f"{count} {suffix or 'without'}" for suffix, count in others.items())
        print(f"no photos by their suffix: {printable(kinds)}", file=sys.stderr)
    results = predictor.results(photos, options.out)
    written = ("predictions.json", *(str(one.picture) for one in photos))
    with (
        locked(options.out, "predict", written),
        progress_bar(results, "predict", unit="photos", total=len(photos)) as bar,
    ):
        for one in photos:
            check_replaced(options.out / one.picture, is_own_png)
        return write_results(options.out / "predictions.json", (rows for _, rows in bar))


def write_results(path: Path, results: Iterable[Sequence[dict]]) -> tuple[int, int]:
    """Writes COCO results as they come, one per line, atomically; returns the numbers of
    objects and photos. results: of each photo."""
    objects = photos = 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("[")
        for rows in results:
            for one in rows:
                file.write(f"{',' if objects else ''}\n{json.dumps(one, allow_nan=False)}")
                objects += 1
            photos += 1
        file.write("\n]\n")
    return objects, photos


if __name__ == "__main__":
    sys.exit(run("predict"))
