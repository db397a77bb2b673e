"""Clue networks: which there are, and loading one: its keys tell what a weights file holds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch

from bridge.clues.clip_es import ClipConfig, load_clip_es
from bridge.clues.interface import ClueNetwork
from bridge.clues.lite_cam import load_lite_cam
from bridge.clues.mctformer import LAST_LAYERS, load_mctformer
from bridge.clues.weaktr import (
    FUSION_PREFIX,
    OFFICIAL_LAYERS,
    WeakTrClues,
    at_depth,
    load_weaktr,
)
from bridge.weights.checkpoints import read_tensors
from bridge.weights.torchscript import is_torchscript
from weaksam_jax.errors import BadInput
from weaksam_jax.ranges import Filled, Layers, Scaling, Settings, Side, integers
from weaksam_jax.supervision import Supervision, saw, stated

OfTwelve = Annotated[int, integers(0, 11)]
COCO_SLOTS = 90  # the published COCO networks have one a category id, ten of them dead


@dataclass(frozen=True)
class ClueConfig(Settings):
    """How a trained clue network is used; what does not belong to it is not looked at."""

    fusion: Literal["auto", "v3", "v1", "uniform"] = "auto"
    """Of WeakTr: as the file says (auto), or another; uniform is what the official code
    computes."""
    tta_scales: Filled[Scaling] = (1.0, 0.8, 1.2)
    """Of WeakTr and MCTformer: scales whose maps are averaged."""
    cross_layers: Filled[OfTwelve] = OFFICIAL_LAYERS
    """Theirs too: layers of the cross maps, 0-based in a network of 12; another network takes
    those at the same relative depth."""
    resize_long: Side | None = None
    """Long side in pixels to which their input is brought [its own size]."""
    last_layers: Layers = LAST_LAYERS
    """Of MCTformer: layers whose attention is averaged."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    """Of CLIP-ES."""


def load_clues(
    path: str | Path,
    classes: tuple[str, ...],
    category_ids: tuple[int, ...] | None = None,
    config: ClueConfig | None = None,
) -> ClueNetwork:
    """The clue network of a weights file for a data set of these classes.

    WeakTr (published or ours), MCTformer-V2, a Lite0 head of ours, or CLIP (for CLIP-ES). It is put
    on the GPU where there is one; Lite0 stays on the CPU. category_ids: COCO's, one per class; a
    network with 90 slots is read at category_id - 1. Raises `BadInput` when the file is none of
    these, does not fit together, or knows another number of classes (or, if the file says their
    names, other classes) than the data set has.
    """
    config = config or ClueConfig()
    kind, metadata = recognise(path)
    if kind == "clip":
        return load_clip_es(path, classes, config.clip, device=_device())
    if kind == "lite_cam":
        network = load_lite_cam(path)
        _slots(path, len(network.bias), metadata, classes=classes, category_ids=category_ids)
        return network
    if kind == "mctformer":
        model = load_mctformer(path, config.last_layers)
    else:
        model = load_weaktr(path, config.fusion)
    slots = _slots(path, model.config.classes, metadata, classes=classes, category_ids=category_ids)
    layers = at_depth(config.cross_layers, model.config.depth)
    long_side = config.resize_long
    return WeakTrClues(
        model.to(_device()), config.tta_scales, layers, resize_long=long_side, slots=slots
    )


def recognise(path: str | Path) -> tuple[str, dict[str, str]]:
    """What a weights file holds (weaktr, mctformer, lite_cam or clip), and its metadata."""
    if is_torchscript(path):  # OpenAI's form of CLIP
        return "clip", {}
    state, metadata = read_tensors(path)
    if state.keys() == {"weight", "bias"}:
        return "lite_cam", metadata
    if "visual.conv1.weight" in state:
        return "clip", metadata
    if {"cls_token", "pos_embed"} <= state.keys():
        fused = any(name.startswith(FUSION_PREFIX) for name in state) or "fusion" in metadata
        return "weaktr" if fused else "mctformer", metadata
    hint = "give WeakTr, MCTformer-V2, CLIP or a head that this project trained"
    raise BadInput(path, f"is no clue network (keys {', '.join(sorted(state)[:4])})", hint)


# What published networks were trained on, by their layouts.
_SEEN = {
    "weaktr": saw(["tags"], "by its layout: WeakTr (published ones were chosen by masks)"),
    "mctformer": saw(["tags"], "by its layout: MCTformer"),
    "lite_cam": saw(["tags"], "by its layout: a head over EfficientNet-Lite0"),
    "clip": saw(["text"], "by its layout: CLIP"),
}


def clue_supervision(path: str | Path) -> Supervision:
    """What the clue network of a weights file has seen, as the file says or by its layout."""
    kind, metadata = recognise(path)
    return stated(metadata, path) if "supervision" in metadata else _SEEN[kind]


def _slots(
    path: str | Path,
    count: int,
    metadata: dict[str, str],
    classes: tuple[str, ...],
    category_ids: tuple[int, ...] | None,
) -> tuple[int, ...] | None:
    """Which of a network's `count` classes are those of the data set; None: all, in order."""
    hint = "train a clue network on this data set, or give one for its classes"
    known = metadata.get("classes")
    if known is not None and known != ";".join(classes):
        raise BadInput(path, f"was trained for the classes {known}", hint)
    if count == len(classes):
        return None
    if count == COCO_SLOTS and category_ids and max(category_ids) <= COCO_SLOTS:
        return tuple(category - 1 for category in category_ids)
    raise BadInput(path, f"has {count} classes, the data set has {len(classes)}", hint)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
