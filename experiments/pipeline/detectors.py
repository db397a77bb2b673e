"""The detectors as the pipeline and its commands use them: nothing else here trains or detects."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

import weaksam_jax.detectors.faster_rcnn.config as retraining
import weaksam_jax.detectors.faster_rcnn.recipes as retrain_recipes
import weaksam_jax.detectors.mil.config as detection
from weaksam_jax.data.records import TagSplit
from weaksam_jax.detectors.faster_rcnn.config import RetrainSettings as RetrainConfig
from weaksam_jax.detectors.faster_rcnn.loss import DropSettings as DropConfig
from weaksam_jax.detectors.mil import recipes
from weaksam_jax.detectors.mil.config import WsodSettings as MilConfig
from weaksam_jax.engine.journal import Journal
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays
from weaksam_jax.run_folder import RunFolder
from weaksam_jax.settings import from_plain, to_plain

Method = Literal["mist", "oicr"]
Config = MilConfig | RetrainConfig
PAPER = ("voc07", "voc12", "coco14")
# Presets by name, for files of weights that do not state how they were made.
MIL_PRESETS: dict[str, Callable[[], MilConfig]] = recipes.PRESETS
FASTER_RCNN_PRESETS: dict[str, Callable[[], RetrainConfig]] = {
    "mini_faster_rcnn": retraining.mini,
    "light_faster_rcnn": retraining.light,
    **{f"{name}_faster_rcnn": getattr(retrain_recipes, name) for name in PAPER},
}


# Configs


def mil_preset(name: str, method: Method = "mist") -> MilConfig:
    """mini, light or one of the paper's (`PAPER`); method: "mist" or "oicr"."""
    if name in PAPER:
        return getattr(recipes, name)(method)
    return replace(MIL_PRESETS[name](), method=method)


def retrain_preset(name: str) -> RetrainConfig:
    """mini, light or one of the paper's (`PAPER`)."""
    return FASTER_RCNN_PRESETS[f"{name}_faster_rcnn"]()


def with_method(config: MilConfig, method: str) -> MilConfig:
    """The config with another way of mining pseudo boxes ("mist", "oicr", "wsddn")."""
    return replace(config, method=method)


def with_init(config: Config, path: str) -> Config:
    """The config that starts from a file of weights."""
    return replace(config, init=path)


def init_of(config: Config) -> str | None:
    """The file of weights that training starts from, as it was given."""
    return config.init


def check_init(config: MilConfig) -> None:
    """`BadInput` when a published backbone is to start from nothing."""
    detection.check_init(config)


def backbone_of(config: Config) -> str:
    """The name of the backbone."""
    return config.backbone


def tag_power_of(config: RetrainConfig) -> float:
    """The power of the clue network's tags in the scores; 0: they have no part in them."""
    return config.tag_power


def drop_of(config: RetrainConfig) -> DropConfig | None:
    """The config of RoI drop; None: there is none."""
    return config.drop


def with_drop(config: RetrainConfig, drop: DropConfig | None) -> RetrainConfig:
    """The config with another RoI drop, or without it (None)."""
    return replace(config, drop=drop)


def steps_of(config: RetrainConfig) -> int:
    """Steps of the training."""
    return config.steps


def shortened(config: RetrainConfig, share: float) -> RetrainConfig:
    """The same schedule in `share` of the steps; the warm-up stays as it is."""

    def part(steps: int) -> int:
        return max(1, round(share * steps))

    drop = config.drop and replace(config.drop, start=part(config.drop.start))
    milestones = tuple(map(part, config.milestones))
    return replace(config, steps=part(config.steps), milestones=milestones, drop=drop)


# The MIL detector


@dataclass(frozen=True)
class MilInputs:
    """What the MIL detector reads beside images and tags: the proposal store, stored clues, and
    the parameters of a frozen backbone (None: there are none)."""

    proposals: Path
    clues: Path | None = None
    backbone: dict | None = None


def train_mil(
    split: TagSplit, inputs: MilInputs, config: MilConfig, folder: Path, seed: int
) -> dict:
    """Trains on tags and proposals; returns the parameters. Resumes in `folder`."""
    from weaksam_jax.detectors.mil.train import train_wsod
    from weaksam_jax.engine.mesh import data_mesh

    place = folder, data_mesh(), seed, inputs.backbone, inputs.clues
    return train_wsod(split, inputs.proposals, config, *place)


def detect_mil(
    params: dict,
    split: TagSplit,
    inputs: MilInputs,
    config: MilConfig,
    folder: Path,
    journal: Journal | None = None,
    weights: str | Path = "weights",
) -> list[dict]:
    """COCO results of every image of the split. weights: what errors call the parameters."""
    from weaksam_jax.detectors.mil.detect import detect_wsod

    more = inputs.backbone, inputs.clues, journal, weights
    return detect_wsod(params, split, inputs.proposals, config, folder, *more)


def save_mil(path: Path, params: dict, config: MilConfig, classes: tuple[str, ...]) -> None:
    """Writes the detector; the file states its config and classes."""
    from weaksam_jax.engine.checkpoint import save_params

    save_params(path, params, _stated("mil", config, classes))


# The retrained detector


def retrain_start(folder: RunFolder, config: RetrainConfig) -> dict | None:
    """Backbone parameters that retraining in a run starts from: those of `init`, ImageNet's Lite0,
    or the MIL detector's own (None when it has none). `BadInput` when the file does not fit."""
    from weaksam_jax.detectors.faster_rcnn.network import load_backbone

    if config.init is not None:
        return load_backbone(config.init, config)
    if config.backbone == "lite0":
        return load_backbone(folder.lite0, config)
    return load_backbone(folder.weights("wsod"), config, "backbone/")


def train_retrainer(
    pgt: Mapping,
    split: TagSplit,
    config: RetrainConfig,
    folder: Path,
    seed: int,
    start: dict | None,
    until: int | None = None,
) -> dict:
    """Trains on pseudo boxes from `start` (of `retrain_start`); returns the parameters.

    Resumes in `folder`. until: stop after so many steps of the schedule.
    """
    from weaksam_jax.detectors.faster_rcnn.train import train_retrain
    from weaksam_jax.engine.mesh import data_mesh

    return train_retrain(pgt, split, config, folder, data_mesh(), seed, start, until)


def detect_retrainer(
    params: dict,
    split: TagSplit,
    config: RetrainConfig,
    tag_logits: np.ndarray | None = None,
    progress: bool = True,
) -> list[dict]:
    """COCO results of every image of the split. tag_logits: `[images, C]`, for `tag_power_of`."""
    from weaksam_jax.detectors.faster_rcnn.detect import detect_retrain

    return detect_retrain(params, split, config, progress, tag_logits)


def save_retrainer(
    path: Path, params: dict, config: RetrainConfig, classes: tuple[str, ...]
) -> None:
    """Writes the detector; the file states its config and classes."""
    from weaksam_jax.detectors.faster_rcnn.network import detector_metadata
    from weaksam_jax.engine.checkpoint import save_params

    stated = detector_metadata(config, classes) | _stated("faster_rcnn", config, classes)
    save_params(path, params, stated)


def load_retrainer(path: Path, config: RetrainConfig, classes: int) -> dict:
    """The parameters in a file; `BadInput` naming it when they are not of this detector."""
    from weaksam_jax.detectors.faster_rcnn.network import build_model, detector_params

    model = build_model(config, classes)
    return detector_params(model, config.views[0][0], read_arrays(path)[0], path)


# Files of weights


def _stated(kind: str, config: Config, classes: tuple[str, ...]) -> dict[str, str]:
    made = {"detector": kind, "config": json.dumps(to_plain(config))}
    return {**made, "classes": json.dumps(list(classes))}


def stated_config(path: str | Path) -> Config | None:
    """The config that a file of weights states; None when it states none. `BadInput` when the file
    is missing or damaged."""
    _, metadata = read_arrays(path)
    kind = {"mil": MilConfig, "faster_rcnn": RetrainConfig}.get(metadata.get("detector"))
    if kind is None or "config" not in metadata:
        return None
    return from_plain(kind, json.loads(metadata["config"]), path)


def as_stated(path: Path, config: RetrainConfig) -> RetrainConfig:
    """`config` with what a file of Faster R-CNN states of itself; `BadInput` for another file."""
    from weaksam_jax.detectors.faster_rcnn.network import as_trained

    arrays, metadata = read_arrays(path)
    if "box_head/cls/bias" not in arrays:
        hint = "give the retrained detector of a run, or what bridge.convert makes of one"
        raise BadInput(path, "is no Faster R-CNN", hint)
    return as_trained(config, metadata)


def classes_of(path: Path) -> list[str] | int:
    """Names of a Faster R-CNN's classes, or their number where its file names none."""
    arrays, metadata = read_arrays(path)
    return json.loads(metadata.get("classes", "0")) or arrays["box_head/cls/bias"].size - 1
