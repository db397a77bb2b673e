"""Boxes, masks and pictures of new photos, from a finished run.

    python -m experiments.predict --run runs/mine beach.jpg park.jpg --out predictions
    python -m experiments.predict --run runs/mine holiday/ 'more/**/*.jpg' --out predictions

Takes photos, folders (with all that is in them) and globs, any number of photos: they are worked
off a few at a time. Writes a picture of each photo, named after it (beach.jpg: beach.png; photos of
one name in several folders: a/beach.png, b/beach.png), and at the end predictions.json: COCO
results (file_name, category_id, bbox, score, segmentation), an object a line.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from experiments.pipeline.commands import run
from weaksam_jax.errors import BadInput
from weaksam_jax.flags import parse


@dataclass(frozen=True)
class Predict:
    """Detects with a run's retrained detector; SAM turns the boxes into masks."""

    photos: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Photos, folders of photos, or globs."""
    run: Path
    """A finished run folder (stage retrain)."""
    out: Path
    """Folder for predictions.json and the pictures."""
    threshold: float = 0.3
    """Least score of a detection that is kept."""
    masks: bool = True
    """Prompt SAM with the boxes for masks."""
    chunk: int = 32
    """So many photos are in memory at a time."""


def main(argv: Sequence[str] | None = None) -> None:
    from weaksam_jax.engine.compilation_cache import enable_compilation_cache

    options = parse(Predict, argv, __doc__, "predict")
    enable_compilation_cache()
    objects, photos = predict(options)
    print(f"{objects} objects on {photos} photos: {options.out}")


def predict(options: Predict) -> tuple[int, int]:
    """Detects, adds masks, writes a picture a photo; returns the numbers of objects and photos.

    Raises `BadInput` before anything is written for a run that is not finished and for what is no
    photo.
    """
    from experiments.pipeline.photos import find_photos
    from experiments.pipeline.predictor import open_predictor
    from weaksam_jax.files import atomic_path

    if options.chunk < 1:
        raise BadInput("--chunk", f"is {options.chunk}", "give at least 1")
    predictor = open_predictor(options.run, options.masks)
    photos = find_photos(options.photos, options.out)
    count = 0
    with (
        atomic_path(options.out / "predictions.json") as path,
        open(path, "w", encoding="utf-8") as file,
    ):
        file.write("[")
        for one in _results(options, predictor, photos):
            file.write(f"{',' if count else ''}\n{json.dumps(one, allow_nan=False)}")
            count += 1
        file.write("\n]\n")
    return count, len(photos)


def _results(options: Predict, predictor, photos: Sequence) -> Iterator[Mapping]:
    """COCO results of the photos, in their order; the pictures are written on the way."""
    from tqdm import tqdm

    with tqdm(total=len(photos), desc="predict", unit="photos") as bar:
        for start in range(0, len(photos), options.chunk):
            part = photos[start : start + options.chunk]
            split = replace(predictor.photos, records=tuple(one.record for one in part))
            found = predictor.detect(split, options.threshold)
            for photo in part:
                yield from predictor.finish(photo, found[photo.record.image_id], options.out)
                bar.update()


if __name__ == "__main__":
    sys.exit(run("predict"))
