"""Config of the whole pipeline, and the presets that fill it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from bridge.clues.lite_cam import LiteConfig
from bridge.clues.networks import ClueConfig
from bridge.clues.weaktr_recipe import WeakTrRecipe
from bridge.proposals import presets as bridge_presets
from bridge.proposals.export import ExportConfig
from bridge.sam.pseudo_masks import MaskConfig
from experiments.pipeline import detectors
from experiments.pipeline.detectors import Method, MilConfig, RetrainConfig
from experiments.pipeline.metrics import ApRule
from weaksam_jax.backbones import BACKBONES
from weaksam_jax.detectors import RETRAINERS
from weaksam_jax.errors import BadFile, BadInput
from weaksam_jax.pgt import PgtConfig
from weaksam_jax.ranges import Fault, Settings
from weaksam_jax.settings import change


@dataclass(frozen=True)
class CommonConfig(Settings):
    """Settings of every stage but further retrained detectors, which `PipelineConfig` adds."""

    train_split: str | None = None
    """Name of the training split [the data set's own]."""
    test_split: str | None = None
    """Name of the test split [the data set's own]."""
    ap50: ApRule = "voc07"
    """How AP50 is measured: VOC's 11 points, VOC's area, or COCO's 101 points [by the command]."""
    clues: str = "weaktr"
    """The clue network: weaktr, lite_cam (trained here), weaktr_paper (the official recipe, from
    the ImageNet weights `--weaktr.init`) or a file of trained weights, used as `clue_use` says."""
    clue_use: ClueConfig = field(default_factory=ClueConfig)
    """How a file of trained weights is used."""
    weaktr: WeakTrRecipe = field(default_factory=WeakTrRecipe.mini)
    """Training of WeakTr."""
    lite: LiteConfig = field(default_factory=LiteConfig)
    """Training of lite_cam."""
    sam: str = "sam_mini"
    """sam_mini, sam_mini_lite or the path of a published checkpoint."""
    export: ExportConfig = field(default_factory=lambda: ExportConfig.preset("mini"))
    """Prompts, masks and proposals."""
    wsod: MilConfig = field(default_factory=lambda: detectors.mil_preset("mini"))
    """The MIL detector."""
    pgt: PgtConfig = field(default_factory=PgtConfig)
    """Pseudo boxes."""
    retrain: RetrainConfig = field(
        default_factory=lambda: detectors.retrain_preset("faster_rcnn", "mini")
    )
    """The retrained detector, the first of several."""
    masks: MaskConfig = field(default_factory=MaskConfig)
    """Pseudo masks."""

    def misfits(self) -> Iterator[Fault]:
        """What a trained detector's file may say, but no training."""
        if self.wsod.optim.pretrain_steps and not self.wsod.model.class_maps:
            problem = f"is {self.wsod.optim.pretrain_steps}, but there are no class maps to train"
            yield Fault("wsod.optim.pretrain_steps", problem, "set wsod.model.class_maps, or 0")

    def clue_recipe(self) -> WeakTrRecipe | LiteConfig | Path:
        """How the clue network is trained, or the file that holds it."""
        if self.clues == "weaktr":
            return self.weaktr
        if self.clues == "lite_cam":
            return self.lite
        if self.clues == "weaktr_paper":
            if self.weaktr.init is None:
                hint = "give the file deit_small_patch16_224-cd65a155.pth"
                raise BadInput("--weaktr.init", "is missing", hint)
            return WeakTrRecipe.paper(self.weaktr.init, workers=self.weaktr.workers)
        if not Path(self.clues).is_file():
            hint = "give weaktr, weaktr_paper, lite_cam or a file of weights"
            raise BadInput(self.clues, "is no clue network", hint)
        return Path(self.clues)


def _further(kind: str) -> tuple[str, Any, Any]:
    """The section of a retrained detector that is not the first."""
    about = tyro.conf.arg(help=f"{kind}, retrained beside the first detector.")
    return f"retrain_{kind}", Annotated[RETRAINERS[kind].Config | None, about], field(default=None)


# Settings of every stage; a row of `RETRAINERS` may be retrained beside another, with its section.
PipelineConfig = make_dataclass(
    "PipelineConfig", list(map(_further, RETRAINERS)), bases=(CommonConfig,), frozen=True
)


def mini(method: Method = "mist", retrain: str = "faster_rcnn") -> PipelineConfig:
    """The embedded mini set: everything small and from scratch, minutes on two cores.

    tau_s of the pseudo boxes is not the paper's 0.3: a low-scored box of a group swallows the
    better ones inside it (Algorithm 2's overlap test), so that both precision and recall rise with
    tau_s up to 0.7 (docs/results.md).
    """
    return replace(
        PipelineConfig(),
        wsod=detectors.mil_preset("mini", method),
        pgt=PgtConfig(score_threshold=0.8),
        **detectors.retrain_sections(retrain, "mini"),
    )


def light(method: Method = "mist", retrain: str = "faster_rcnn") -> PipelineConfig:
    """Photographs on a CPU: ImageNet features of EfficientNet-Lite0 (extra `light`)."""
    return replace(
        PipelineConfig(),
        clues="lite_cam",
        sam="sam_mini_lite",
        export=ExportConfig.preset("light"),
        wsod=detectors.mil_preset("light", method),
        **detectors.retrain_sections(retrain, "light"),
    )


def published(data: str, method: Method = "mist", retrain: str = "faster_rcnn") -> PipelineConfig:
    """The paper's networks, schedules and sizes for "voc07", "voc12" or "coco14", for GPUs or TPUs.

    They start from published weights in the folder `weights` (`WEIGHTS` says which, and how to make
    them); flags name others.
    """
    preset = bridge_presets.PRESETS[f"{data}-paper"]
    wsod, retrained = detectors.mil_preset(data, method), detectors.retrain_sections(retrain, data)
    return replace(
        PipelineConfig(),
        clues="weights/WeakTr_CAM_Generation" + ("_COCO.pth" if data == "coco14" else ".pth"),
        clue_use=preset.clue_use,
        sam="weights/sam_vit_h_4b8939.pth",
        export=ExportConfig.preset(f"{data}-paper"),
        wsod=_from_imagenet(wsod),
        **{stage: _from_imagenet(config) for stage, config in retrained.items()},
    )


def _from_imagenet(config: MilConfig | RetrainConfig) -> MilConfig | RetrainConfig:
    """The config with the file of ImageNet weights of its backbone, where that has none of its own.

    The file is called as the backbone's row has it.
    """
    name = config.model.backbone
    backbone = BACKBONES[name]
    if backbone.scratch or backbone.package:
        return config
    name = backbone.file or name
    return change(config, {"optim.init": f"weights/{name}.safetensors"})


# What each file of `weights` is, for whom it is missing.
WEIGHTS = {
    "WeakTr_CAM_Generation.pth": "put WeakTr's published checkpoint there, or train it: "
    "python -m bridge.train_weaktr --help",
    "WeakTr_CAM_Generation_COCO.pth": "put WeakTr's published COCO checkpoint there, or train it: "
    "python -m bridge.train_weaktr --help",
    "sam_vit_h_4b8939.pth": "put SAM's published checkpoint there, or name another: --sam",
    "vgg16.safetensors": "python -m bridge.convert vgg16 --from vgg16-00b39a1b.pth "
    "--to weights/vgg16.safetensors",
    "resnet50.safetensors": "python -m bridge.convert resnet50 --from resnet50-0676ba61.pth "
    "--to weights/resnet50.safetensors",
    "R-50.safetensors": "python -m bridge.convert resnet50_msra --from R-50.pkl "
    "--to weights/R-50.safetensors",
}
# (method of the MIL detector, value of --retrain) -> config
PRESETS: dict[str, Callable[[Method, str], PipelineConfig]] = {
    "mini": mini,
    "light": light,
    **{name: partial(published, name) for name in detectors.PAPER},
}


def check_weights(config: PipelineConfig, stages: Sequence[str]) -> None:
    """`BadInput` when a file of weights that one of the stages reads is missing: at once, and not
    after hours."""
    if "wsod" in stages:
        detectors.check_init(config.wsod, "wsod")
    readers = {
        "clues": config.clues,
        "proposals": config.sam,
        "wsod": config.wsod.optim.init,
        "masks": config.sam,
    }
    for stage in stages:
        if stage.startswith("retrain"):
            readers[stage] = getattr(config, detectors.trained_with(stage)).optim.init
    for stage, name in readers.items():
        path = Path(name or "")
        file = path.suffix or path.name in WEIGHTS  # else a name like weaktr or scratch
        if file and stage in stages and not path.exists():
            hint = WEIGHTS.get(path.name, f"give the settings of {stage} a file that exists")
            raise BadFile(path, "does not exist", hint)
