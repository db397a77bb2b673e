"""Detectors: one folder each and one row in `DETECTORS`.

A detector is data and functions: `config` and `classes` say what it is, everything else is a pure
function of parameters and a batch. `weaksam_jax.engine` trains and runs any of them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import optax
from jax.sharding import Mesh

from weaksam_jax.detectors.dino import Dino
from weaksam_jax.detectors.faster_rcnn import FasterRcnn
from weaksam_jax.detectors.mil import MilDetector
from weaksam_jax.detectors.start import stated_config
from weaksam_jax.engine.predict import Detections, Predictor, detect_file, detect_split
from weaksam_jax.engine.step import Batch, Keys, Metrics, Params
from weaksam_jax.engine.train import train_detector
from weaksam_jax.engine.weights import Weights, fill, read_weights, save_params
from weaksam_jax.errors import BadInput
from weaksam_jax.ranges import Filled, Width, first_fault
from weaksam_jax.settings import from_plain, to_plain
from weaksam_jax.supervision import Supervision
from weaksam_jax.text import parse_json

__all__ = [
    "DETECTORS",
    "RETRAINERS",
    "Detections",
    "Detector",
    "Weights",
    "detect_file",
    "detect_split",
    "load_detector",
    "metadata_of",
    "read_weights",
    "save_detector",
    "train_detector",
]


class Detector(Protocol):
    """What every detector offers.

    kind: its row in `DETECTORS`; Config: the type of its config; presets: configs by name ("mini",
    "light", and the paper's); learns_from: what training is shown beside images; on_proposals:
    whether it detects among given proposals, not on the image alone. config: a frozen
    dataclass with the parts `.model .loss .optim .data .test`; classes: names, or their number.

    Every batch has `image` uint8 RGB `[B, H, W, 3]` (zero-padded at right and bottom) and `size`
    `[B, 2]`, (height, width); to learn boxes also `boxes` `[B, G, 4]`, `labels` and `valid`
    `[B, G]`; the MIL detector's proposals, prior and tags (`MilDetector`).
    """

    kind: str
    Config: type
    presets: Mapping[str, Callable[[], Any]]
    learns_from: Literal["tags", "boxes"]
    on_proposals: bool
    config: Any
    classes: tuple[str, ...] | int

    def init(self, key: jax.Array, batch: Batch, weights: Weights | None = None) -> Params:
        """Fresh parameters (of the shapes that `batch` asks for), `weights` in their place."""
        ...

    def start(self, fresh: Params, weights: Weights | None) -> Params:
        """`fresh` parameters (or their shapes) with those of `weights` in their place; `BadInput`
        when they do not fit."""
        ...

    def shapes(self) -> Params:
        """Shapes and dtypes of the parameters."""
        ...

    def loss(
        self, params: Params, batch: Batch, keys: Keys, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """(loss float32 [], metrics of scalars) of a part of a batch, inside `jax.shard_map`."""
        ...

    def predict(self, params: Params, batch: Batch) -> Detections:
        """Detections of one view, in pixels of the input; `jax.jit` it."""
        ...

    def predictor(self, params: Params, mesh: Mesh | None = None) -> Predictor:
        """Detections of images in all their views, merged as this detector does; the images are
        dealt out to the devices of `mesh` [all of this process]."""
        ...

    def frozen(self, path: Sequence[str]) -> bool:
        """Whether the parameter of these names (from the root) keeps its value."""
        ...

    def optimizer(self) -> optax.GradientTransformation:
        """Optimizer and schedule of `config.optim`."""
        ...


DETECTORS: dict[str, type] = {one.kind: one for one in (MilDetector, FasterRcnn, Dino)}
# Those that are retrained on pseudo boxes.
RETRAINERS = {kind: one for kind, one in DETECTORS.items() if one.learns_from == "boxes"}


def load_detector(path: str | Path) -> tuple[Detector, Params]:
    """(detector, parameters) of a file that training, `save_detector` or `bridge.convert` wrote.

    The file's metadata say what it is and how it is built (docs/file_formats.md). Raises `BadInput`
    with the path when it is no detector, or when its arrays are not of what it states.
    """
    weights = read_weights(path)
    detector = stated_detector(weights)
    hint = "make the file again, or convert it again"
    return detector, fill(detector.shapes(), weights, hint=hint)


def stated_detector(weights: Weights) -> Detector:
    """The detector that a file's metadata describe."""
    kind = weights.metadata.get("detector")
    if kind not in DETECTORS:
        hint = f"give a file of training or of bridge.convert ({', '.join(DETECTORS)})"
        raise BadInput(weights.path, "is no file of a detector", hint)
    where = f"{weights.path} (metadata config)"
    config = from_plain(DETECTORS[kind].Config, stated_config(weights), where)
    return DETECTORS[kind](config, _stated_classes(weights))


def _stated_classes(weights: Weights) -> tuple[str, ...] | int:
    """The names that a file's metadata state, or the number of classes."""
    text = weights.metadata.get("classes", weights.metadata.get("num_classes", ""))
    found = parse_json(text, f"{weights.path} (metadata classes)")
    found = tuple(found) if isinstance(found, list) else found
    if fault := first_fault(Filled[str] | Width, found):
        problem = f"(metadata classes) {fault.problem}, no names and no number"
        raise BadInput(weights.path, problem, "make the file again")
    return found


def save_detector(
    path: str | Path, detector: Detector, params: Params, seen: Supervision | None = None
) -> None:
    """Writes a detector with all that `load_detector` needs, atomically.

    seen: what its weights were trained on (`weaksam_jax.supervision`); None: the file does not say,
    so that no weakly supervised run starts from it unasked.
    """
    metadata = metadata_of(detector) | (seen.metadata() if seen else {})
    save_params(path, params, metadata)


def metadata_of(detector: Detector) -> dict[str, str]:
    """What a detector's file states of it."""
    named = not isinstance(detector.classes, int)
    classes = {"classes": json.dumps(list(detector.classes))} if named else {}
    return {
        "detector": detector.kind,
        "config": json.dumps(to_plain(detector.config)),
        **(classes or {"num_classes": str(detector.classes)}),
    }
