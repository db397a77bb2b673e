"""The main jobs: where each finds its data set, and how it measures."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from weaksam_jax.errors import BadInput


@dataclass(frozen=True)
class Job:
    """A main job. find: its data set on this machine (None: data must be given); tfds: what
    `--data tfds` means; ap50: how AP50 is measured (`ApRule`)."""

    name: str
    find: Callable[[], Path | None] | None = None
    tfds: str | None = None
    ap50: str = "voc07"

    def resolve(self, data: str) -> str:
        """The value of --data with "auto" and "tfds" in plain words; "auto" stays where data must
        be given."""
        if data == "auto" and self.find:
            return str(self.find() or "mini")
        if data == "tfds" and self.tfds is None:
            hint = "give a folder, tfds:voc/2007 or tfds:voc/2012"
            raise BadInput("--data", f"tfds has no data set for {self.name}", hint)
        return self.tfds if data == "tfds" else data


def find_voc(year: int) -> Path | None:
    """A VOC2007 or VOC2012 under $WEAKSAM_DATA or data/, whichever is there first."""
    name = f"VOC{year}"
    for root in _roots():
        for inner in (f"VOCdevkit/{name}", name, f"VOCdevkit/VOCdevkit/{name}"):
            if (root / inner / "ImageSets" / "Main").is_dir():
                return root / inner
    return None


def find_coco14() -> Path | None:
    """$WEAKSAM_DATA or data/, or a folder in it, that has annotations/instances_train2014.json."""
    for root in _roots():
        for found in (root, *sorted(root.glob("*/"))):
            if (found / "annotations" / "instances_train2014.json").is_file():
                return found
    return None


def _roots() -> Iterator[Path]:
    yield from (Path(root) for root in (os.environ.get("WEAKSAM_DATA"), "data") if root)


JOBS = {
    "voc07": Job("voc07", lambda: find_voc(2007), "tfds:voc/2007"),
    "voc12": Job("voc12", lambda: find_voc(2012), "tfds:voc/2012", ap50="voc12"),
    "coco14": Job("coco14", find_coco14, ap50="coco"),
    "custom": Job("custom"),
}
