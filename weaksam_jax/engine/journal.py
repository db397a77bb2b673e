"""Finished images of a long detection, kept on disk so that a killed run goes on.

The results stay on disk: in memory is where those of each image stand.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weaksam_jax.data.json_rows import plain_boxes, plain_integers, plain_numbers
from weaksam_jax.errors import BadFile
from weaksam_jax.files import json_lines, write_text

_KIND = "line of COCO results by image"
_HINT = "move the file away: all images are detected again then"


class Journal:
    """Results by image: a first line with a key, then a JSON line for each image.

    key: a hash of everything that decides the results. A file of another key is started afresh; a
    last line that was cut short is dropped. done: {image id: byte at which its line begins} of what
    is there. Raises `BadFile` for a file that no journal is, or that was damaged.
    """

    def __init__(self, path: str | Path, key: str):
        self.path, self.done = Path(path), {}
        head = json.dumps({"key": key})
        end = self._index(head) if self.path.exists() else 0
        if end:
            _cut(self.path, end)
        else:
            write_text(self.path, head + "\n")

    def _index(self, head: str) -> int:
        """Fills `done`; the byte behind the last whole line, 0 for a journal of another key."""
        lines = json_lines(self.path, _KIND, _HINT)
        first = next(lines, None)
        if not (
            first and isinstance(first.value, dict) and isinstance(first.value.get("key"), str)
        ):
            number = first.number if first else 1
            raise BadFile(self.path, f"line {number} is no key of detections", _HINT)
        if first.text != head:
            return 0
        end = first.end
        for line in lines:
            _check(line.value, self.path, line.number)
            self.done |= dict.fromkeys(map(int, line.value), line.start)
            end = line.end
        return end

    def add(self, found: Mapping[int, list[dict]]) -> None:
        """Appends the results of some images."""
        with open(self.path, "ab") as file:
            self.done |= dict.fromkeys(found, file.tell())
            file.write(json.dumps(found).encode() + b"\n")

    def rows(self, image_id: int) -> list[dict]:
        """The COCO results of an image that is done."""
        with open(self.path, "rb") as file:
            file.seek(self.done[image_id])
            return json.loads(file.readline())[str(image_id)]


def own_part(path: Path, index: int) -> Path:
    """The journal of one of several processes, beside that of all."""
    return path.with_name(f"{path.stem}-{index}{path.suffix}")


def gather(path: Path, key: str) -> Journal:
    """The journal at `path` with what the parts of several processes hold, which are removed."""
    whole = Journal(path, key)
    name = re.compile(rf"{re.escape(path.stem)}-\d+{re.escape(path.suffix)}", re.ASCII)
    parts = [one for one in path.parent.iterdir() if name.fullmatch(one.name)]
    for part in map(Journal, sorted(parts), [key] * len(parts)):
        for image in part.done.keys() - whole.done.keys():
            whole.add({image: part.rows(image)})
        part.path.unlink()
    return whole


def _cut(path: Path, end: int) -> None:
    """Cuts a file behind its last whole line, and ends that where its end is missing."""
    with open(path, "rb+") as file:
        file.truncate(end)
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def _check(value: Any, path: Path, number: int) -> None:
    """`BadFile` unless a line holds the results of images."""
    if not isinstance(value, dict) or not all(_are_of(*one) for one in value.items()):
        raise BadFile(path, f"line {number} is no {_KIND}", _HINT)


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
