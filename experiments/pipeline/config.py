"""Settings of the whole road, and the presets that fill them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import weaksam_jax.detectors.faster_rcnn.config as retraining
import weaksam_jax.detectors.faster_rcnn.recipes as retrain_recipes
import weaksam_jax.detectors.mil.config as detection
from bridge.clues.lite_cam import LiteSettings
from bridge.clues.networks import ClueSettings
from bridge.clues.weaktr_recipe import WeakTrSettings
from bridge.proposals import presets as bridge_presets
from bridge.proposals.export import ExportSettings
from bridge.sam.pseudo_masks import MaskSettings
from weaksam_jax.detectors.mil import recipes
from weaksam_jax.errors import BadInput
from weaksam_jax.pgt import PgtSettings


@dataclass(frozen=True)
class RoadSettings:
    """Settings of every stage.

    train_split, test_split: names of splits, None for the data set's own choice. clues: the clue
    network: weaktr (trained by `weaktr`), weaktr_paper (the released recipe, from the ImageNet
    weights `weaktr.init`), lite_cam, or a file of trained weights (`bridge.clues.networks`), used
    as `clue_use` says. sam: a name or the path of a published checkpoint (`load_sam`).
    """

    train_split: str | None = None
    test_split: str | None = None
    clues: str = "weaktr"
    clue_use: ClueSettings = field(default_factory=ClueSettings)
    weaktr: WeakTrSettings = field(default_factory=WeakTrSettings.mini)
    lite: LiteSettings = field(default_factory=LiteSettings)
    sam: str = "sam_mini"
    export: ExportSettings = field(default_factory=lambda: ExportSettings.preset("mini"))
    wsod: detection.WsodSettings = field(default_factory=detection.mini)
    pgt: PgtSettings = field(default_factory=PgtSettings)
    retrain: retraining.RetrainSettings = field(default_factory=retraining.mini)
    masks: MaskSettings = field(default_factory=MaskSettings)

    def clue_recipe(self) -> WeakTrSettings | LiteSettings | Path:
        """How the clue network is trained, or the file that holds it."""
        if self.clues == "weaktr":
            return self.weaktr
        if self.clues == "lite_cam":
            return self.lite
        if self.clues == "weaktr_paper":
            if self.weaktr.init is None:
                hint = "give the file deit_small_patch16_224-cd65a155.pth"
                raise BadInput("--settings.weaktr.init", "is missing", hint)
            return WeakTrSettings.paper(self.weaktr.init, workers=self.weaktr.workers)
        if not Path(self.clues).is_file():
            hint = "give weaktr, weaktr_paper, lite_cam or a file of weights"
            raise BadInput(self.clues, "is no clue network", hint)
        return Path(self.clues)


def mini() -> RoadSettings:
    """The embedded mini set: everything small and from scratch, minutes on two cores.

    tau_s of the pseudo boxes is not the paper's 0.3: a low-scored box of a group swallows the
    better ones inside it (Algorithm 2's overlap test), so that both precision and recall rise with
    tau_s up to 0.7 (docs/results.md).
    """
    return replace(RoadSettings(), pgt=PgtSettings(score_threshold=0.8))


def light() -> RoadSettings:
    """Photographs on a CPU: ImageNet features of EfficientNet-Lite0 (extra `light`)."""
    return replace(
        RoadSettings(),
        clues="lite_cam",
        sam="sam_mini_lite",
        export=ExportSettings.preset("light"),
        wsod=detection.light(),
        retrain=retraining.light(),
    )


def published(data: str, method: recipes.Method = "mist") -> RoadSettings:
    """The paper's networks, schedules and sizes for "voc07", "voc12" or "coco14", for GPUs or TPUs.

    They start from published weights in the folder `weights` (`WEIGHTS` says which, and how to make
    them); `--settings.*` names others.
    """
    preset = bridge_presets.PRESETS[f"{data}-paper"]
    return replace(
        RoadSettings(),
        clues="weights/WeakTr_CAM_Generation" + ("_COCO.pth" if data == "coco14" else ".pth"),
        clue_use=preset.clue_use,
        sam="weights/sam_vit_h_4b8939.pth",
        export=ExportSettings.preset(f"{data}-paper"),
        wsod=replace(getattr(recipes, data)(method), init="weights/vgg16.safetensors"),
        retrain=replace(getattr(retrain_recipes, data)(), init="weights/R-50.safetensors"),
    )


# What each file of `weights` is, for whom it is missing.
WEIGHTS = {
    "WeakTr_CAM_Generation.pth": "put WeakTr's published checkpoint there, or train it: "
    "python -m bridge.train_weaktr --help",
    "WeakTr_CAM_Generation_COCO.pth": "put WeakTr's published COCO checkpoint there, or train it: "
    "python -m bridge.train_weaktr --help",
    "sam_vit_h_4b8939.pth": "put SAM's published checkpoint there, or name another: --settings.sam",
    "vgg16.safetensors": "python -m bridge.convert vgg16 --from vgg16-00b39a1b.pth "
    "--to weights/vgg16.safetensors",
    "R-50.safetensors": "python -m bridge.convert resnet50_msra --from R-50.pkl "
    "--to weights/R-50.safetensors",
}
PRESETS: dict[str, Callable[[recipes.Method], RoadSettings]] = {
    "mini": lambda method: mini(),
    "light": lambda method: light(),
    **{name: partial(published, name) for name in ("voc07", "voc12", "coco14")},
}


def check_weights(settings: RoadSettings, stages: Sequence[str]) -> None:
    """`BadInput` when a file of weights that one of the stages reads is missing: at once, and not
    after hours."""
    if "wsod" in stages:
        detection.check_init(settings.wsod)
    readers = {
        "clues": settings.clues,
        "proposals": settings.sam,
        "wsod": settings.wsod.init,
        "retrain": settings.retrain.init,
        "masks": settings.sam,
    }
    for stage, name in readers.items():
        path = Path(name or "")
        file = path.suffix or path.name in WEIGHTS  # else a name like weaktr or scratch
        if file and stage in stages and not path.exists():
            hint = WEIGHTS.get(path.name, f"give the settings of {stage} a file that exists")
            raise BadInput(path, "does not exist", hint)


# Old names in settings.json: the name of today, and the value that it then has.
RENAMED: dict[str, tuple[str, Callable]] = {"canvases": ("scales", lambda canvases: [canvases])}


def restore(kind: type, value: Any) -> Any:
    """The settings dataclass `kind` from the plain values that settings.json holds.

    Settings that the file does not have (an older version) keep their defaults.
    """
    hints = get_type_hints(kind)
    for old, (new, convert) in RENAMED.items():
        if old in value and new not in value:
            value = {**value, new: convert(value[old])}
    found = {}
    for one in fields(kind):
        if one.name not in value:
            continue
        inner, given = hints[one.name], value[one.name]
        nested = [t for t in (inner, *get_args(inner)) if is_dataclass(t)]
        if nested and isinstance(given, dict):
            found[one.name] = restore(nested[0], given)
        else:
            found[one.name] = _as_tuples(given)
    return kind(**found)


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
