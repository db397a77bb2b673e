"""Finished images of a long detection, kept on disk so that a killed run goes on."""

import json
from pathlib import Path

from weaksam_jax.files import write_text


class Journal:
    """Results by image: a first line with a key, then a JSON line for each image.

    key: a hash of everything that decides the results. A file of another key is started afresh; a
    last line that was cut short is dropped. done: {image id: COCO results} of what is there.
    """

    def __init__(self, path: str | Path, key: str):
        self.path, self.done = Path(path), {}
        head, lines = json.dumps({"key": key}), []
        if self.path.exists():
            first, *rest = self.path.read_text(encoding="utf-8").split("\n")
            lines = [line for line in rest if line] if first == head else []
        if lines and not _is_json(lines[-1]):
            lines.pop()
        for line in lines:
            self.done |= {int(image): found for image, found in json.loads(line).items()}
        write_text(self.path, "\n".join([head, *lines]) + "\n")

    def add(self, found: dict[int, list[dict]]) -> None:
        """Appends the results of some images."""
        self.done |= found
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
