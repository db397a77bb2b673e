"""Finished images of a long detection, kept on disk so that a killed run goes on."""

import json
from pathlib import Path
from typing import Any

from weaksam_jax.data.json_rows import plain_boxes, plain_integers, plain_numbers
from weaksam_jax.errors import BadFile
from weaksam_jax.files import read_json_lines, write_text

_KIND = "line of COCO results by image"
_HINT = "move the file away: all images are detected again then"


class Journal:
    """Results by image: a first line with a key, then a JSON line for each image.

    key: a hash of everything that decides the results. A file of another key is started afresh; a
    last line that was cut short is dropped. done: {image id: COCO results} of what is there.
    Raises `BadFile` for a file that no journal is, or that was damaged.
    """

    def __init__(self, path: str | Path, key: str):
        self.path, self.done = Path(path), {}
        head, lines = json.dumps({"key": key}), []
        if self.path.exists():
            first, *rest = read_json_lines(self.path, _KIND, _HINT) or [(1, "", None)]
            if not (isinstance(first[2], dict) and isinstance(first[2].get("key"), str)):
                raise BadFile(self.path, f"line {first[0]} is no key of detections", _HINT)
            lines = rest if first[1] == head else []
        for number, _, value in lines:
            self.done |= _results(value, self.path, number)
        write_text(self.path, "\n".join([head, *(line for _, line, _ in lines)]) + "\n")

    def add(self, found: dict[int, list[dict]]) -> None:
        """Appends the results of some images."""
        self.done |= found
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")


def _results(value: Any, path: Path, number: int) -> dict[int, list[dict]]:
    """The results on a line, by image."""
    if not isinstance(value, dict) or not all(_are_of(*one) for one in value.items()):
        raise BadFile(path, f"line {number} is no {_KIND}", _HINT)
    return {int(image): rows for image, rows in value.items()}


def _are_of(image: str, rows: Any) -> bool:
    """Whether these are COCO results of an image."""
    if not (image.isascii() and image.isdecimal() and isinstance(rows, list)):
        return False
    names = ("image_id", "category_id", "bbox", "score")
    try:
        ids, categories, boxes, scores = ([row[name] for row in rows] for name in names)
    except (TypeError, KeyError):
        return False
    plain = (plain_integers(categories), plain_boxes(boxes), plain_numbers(scores))
    return all(str(one) == image for one in ids) and all(one is not None for one in plain)
