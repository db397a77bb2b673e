"""Detectors as the pipeline and its commands use them: presets, training in a run, detection."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Union

import numpy as np

from weaksam_jax.backbones import BACKBONES
from weaksam_jax.data.pseudo_boxes import PseudoSamples
from weaksam_jax.data.records import TagSplit
from weaksam_jax.data.views import ImageViews
from weaksam_jax.detectors import RETRAINERS, Detector
from weaksam_jax.detectors.mil import MilDetector, MilSamples, MilViews
from weaksam_jax.detectors.mil import mil_views as _mil_views
from weaksam_jax.detectors.mil import train_mil as _train_mil
from weaksam_jax.detectors.mil.config import MilConfig
from weaksam_jax.engine.distributed import run_on_leader
from weaksam_jax.engine.mesh import data_mesh
from weaksam_jax.engine.predict import detect_split, tag_factors
from weaksam_jax.engine.step import Params
from weaksam_jax.engine.train import train_detector
from weaksam_jax.engine.weights import Weights, flatten, read_weights
from weaksam_jax.errors import BadFile, BadInput, did_you_mean
from weaksam_jax.run_folder import RunFolder
from weaksam_jax.settings import change
from weaksam_jax.supervision import check_allowed, read_stated, stated

Method = Literal["mist", "oicr"]
RetrainConfig = Union[tuple(one.Config for one in RETRAINERS.values())]  # noqa: UP007
PAPER = ("voc07", "voc12", "coco14")
WITHOUT_DROP = "_without_drop"  # the end of a stage's name


def mil_preset(name: str, method: Method = "mist") -> MilConfig:
    """mini, light or one of the paper's (`PAPER`); method: "mist" or "oicr"."""
    if name in PAPER:
        return MilDetector.presets[f"{name}_{method}"]()
    return change(MilDetector.presets[name](), {"model.method": method})


def retrain_preset(kind: str, name: str) -> RetrainConfig:
    """mini, light or one of the paper's (`PAPER`), for a row of `RETRAINERS`."""
    return RETRAINERS[kind].presets[name]()


def retrain_kinds(names: str) -> dict[str, str]:
    """Stage -> row of `RETRAINERS` of every detector that --retrain names; empty for "none".

    The first is stage "retrain", a further one "retrain_<row>"; its section of the settings, its
    folder in a run and its figures have the stage's name. Words that are no row stay as they are.
    """
    words = [word.strip() for word in names.split(",")]
    stages = ["retrain", *(f"retrain_{word}" for word in words[1:])]
    return {} if words == ["none"] else dict(zip(stages, words, strict=True))


def retrain_fault(names: str) -> tuple[str, str] | None:
    """(problem, hint) of a value of --retrain that is none."""
    words = [word.strip() for word in names.split(",")]
    known = f"choose from {', '.join(RETRAINERS)}, several with commas between, or none"
    for word in words:
        if word not in RETRAINERS and words != ["none"]:
            return f"names {word[:60]}, no detector", did_you_mean(word[:60], RETRAINERS, known)
    twice = next((word for word in words if words.count(word) > 1), None)
    return twice and (f"names {twice} twice", "name it once")


def retrain_sections(names: str, preset: str) -> dict[str, RetrainConfig]:
    """The settings' sections of the detectors that --retrain names: `retrain`, which stands there
    even where it names none, and those of further ones."""
    kinds = {"retrain": next(iter(RETRAINERS)), **retrain_kinds(names)}
    return {stage: retrain_preset(kind, preset) for stage, kind in kinds.items()}


def trained_with(stage: str) -> str:
    """The section of the settings that a stage of retraining has."""
    return stage.removesuffix(WITHOUT_DROP)


def retrainer(config: RetrainConfig, classes: tuple[str, ...] | int) -> Detector:
    """The detector of a config of one of the `RETRAINERS`."""
    (kind,) = (one for one in RETRAINERS.values() if one.Config is type(config))
    return kind(config, classes)


def check_init(config: MilConfig | RetrainConfig, stage: str) -> None:
    """`BadInput` when a published backbone is to start from nothing (the pipeline brings those
    weights itself that a package has)."""
    backbone = config.model.backbone
    row = BACKBONES[backbone]
    if config.optim.init is None and not row.package and not row.scratch:
        hint = f'set --{stage}.optim.init to a file of bridge.convert, or to "scratch"'
        raise BadInput(f"stage {stage}", f"has no weights for {backbone}", hint)


def check_start(detector: Detector, path: Path) -> None:
    """`BadInput` when the weights in a file do not fit a detector that is to start from them."""
    detector.start(detector.shapes(), read_weights(path))


def check_shared(config: RetrainConfig, mil: MilConfig, stage: str) -> None:
    """`BadInput` when a detector that starts from the MIL detector has another backbone."""
    names = ("backbone", "backbone_width")
    differ = [one for one in names if getattr(config.model, one) != getattr(mil.model, one)]
    if not differ or (differ == ["backbone_width"] and _as_wide(config, mil)):
        return
    own, theirs = (getattr(one.model, differ[0]) for one in (config, mil))
    problem = f"starts from the MIL detector, whose model.{differ[0]} is {theirs}, not {own}"
    flag = f"--{trained_with(stage).replace('_', '-')}"
    hint = f"make both the same, or set {flag}.optim.init to other weights"
    raise BadInput(f"stage {stage}", problem, hint)


def _as_wide(config: RetrainConfig, mil: MilConfig) -> bool:
    """Whether the backbones have the same layers, one of which may name its own width."""
    shared, shapes = BACKBONES[mil.model.backbone].shared, []
    for detector in (retrainer(config, 2), MilDetector(mil, 2)):
        backbone = detector.shapes()["backbone"]
        leaves = flatten(backbone.get(shared, backbone)).items()
        shapes.append({name: leaf.shape for name, leaf in leaves})
    return all(shapes[0][name] == shapes[1][name] for name in shapes[0].keys() & shapes[1].keys())


def packaged_weights(folder: RunFolder, config: MilConfig | RetrainConfig) -> Weights | None:
    """ImageNet weights that an installed package brings for the backbone, converted once; None
    where none does, or where `optim.init` says what to start from."""
    from bridge.weights.kinds import convert

    kind, path = BACKBONES[config.model.backbone].package, folder.backbone(config.model.backbone)
    if not kind or config.optim.init is not None:
        return None
    run_on_leader(lambda: path.exists() or bool(convert(kind, path)))
    try:
        return read_weights(path)
    except BadFile:  # damaged since: it is made again
        run_on_leader(lambda: bool(convert(kind, path)))
        return read_weights(path)


def init_file(config: MilConfig | RetrainConfig) -> Path | None:
    """The file of `optim.init`; None where it names none."""
    return None if config.optim.init in (None, "scratch") else Path(config.optim.init)


def _given_weights(config: MilConfig | RetrainConfig) -> Weights | None:
    path = init_file(config)
    return None if path is None else read_weights(path)


def check_permission(path: Path, allowed: Iterable[str], stage: str) -> None:
    """`BadInput` when a stage may not start from a file of weights, whose metadata alone are
    read."""
    check_allowed(path, read_stated(path), allowed, what=f"stage {stage}")


def _permitted(weights: Weights | None, allowed: Iterable[str], what: str) -> Weights | None:
    """`weights`, which a detector may start from; `BadInput` when it may not."""
    if weights is not None:
        seen = stated(weights.metadata, weights.path)
        check_allowed(weights.path, seen, allowed, what=what)
    return weights


def shortened(config: RetrainConfig, share: float) -> RetrainConfig:
    """The same schedule in `share` of the steps; the warm-up stays as it is."""

    def part(steps: int) -> int:
        return max(1, round(share * steps)) if steps else 0

    optim = config.optim
    values = {"optim.steps": part(optim.steps)}
    values["optim.milestones"] = tuple(map(part, optim.milestones))
    if config.loss.drop is not None:
        values["loss.drop.start"] = part(config.loss.drop.start)
    return change(config, values)


@dataclass(frozen=True)
class MilInputs:
    """What the MIL detector reads beside images and tags: the proposal store and stored clues."""

    proposals: Path
    clues: Path | None = None


def train_mil(
    detector: MilDetector,
    split: TagSplit,
    inputs: MilInputs,
    *,
    folder: Path,
    seed: int,
    start: Weights | None = None,
) -> Params:
    """Trains on tags and proposals; returns the parameters. Resumes in `folder`."""
    samples = MilSamples(split, inputs.proposals, detector.config, clues_root=inputs.clues)
    return _train_mil(detector, samples, folder, mesh=data_mesh(), seed=seed, weights=start)


def detect_mil(
    detector: MilDetector, params: Params, split: TagSplit, *, inputs: MilInputs, folder: Path
) -> list[dict]:
    """COCO results of every image of the split."""
    views = mil_views(detector, params, split, inputs=inputs, folder=folder)
    return detect_split(detector.predictor(params), views)


def mil_views(
    detector: MilDetector, params: Params, split: TagSplit, *, inputs: MilInputs, folder: Path
) -> MilViews:
    """The images of a split with their proposals; folder: for maps of a frozen backbone."""
    roots = {"proposals_root": inputs.proposals, "clues_root": inputs.clues}
    return _mil_views(detector, params, split, folder=folder, **roots)


def wsod_start(folder: RunFolder, config: MilConfig, allowed: Iterable[str] = ()) -> Weights | None:
    """What the MIL detector of a run starts from: `optim.init`, weights of a package (Lite0's), or
    nothing.

    allowed: supervision that weights may have seen beside tags; `BadInput` for other.
    """
    found = _given_weights(config) or packaged_weights(folder, config)
    return _permitted(found, allowed, "the MIL detector")


def starts_from_wsod(config: RetrainConfig) -> bool:
    """Whether retraining starts from the MIL detector."""
    return config.optim.init is None and not BACKBONES[config.model.backbone].package


def start_file(folder: RunFolder, config: RetrainConfig) -> Path | None:
    """The file of what retraining starts from (`retrain_start`); None for fresh weights."""
    if starts_from_wsod(config):
        return folder.weights("wsod")
    given = config.optim.init is not None
    return init_file(config) if given else folder.backbone(config.model.backbone)


def retrain_start(
    folder: RunFolder, config: RetrainConfig, allowed: Iterable[str] = ()
) -> Weights | None:
    """What retraining in a run starts from: `optim.init`, weights of a package (Lite0's), or the
    MIL detector. allowed: as for `wsod_start`."""
    if starts_from_wsod(config):
        found = read_weights(folder.weights("wsod"))
    else:
        found = _given_weights(config) or packaged_weights(folder, config)
    return _permitted(found, allowed, "retraining")


def train_retrainer(
    detector: Detector,
    pgt: Mapping,
    split: TagSplit,
    *,
    folder: Path,
    seed: int,
    start: Weights | None,
    until: int | None = None,
) -> Params:
    """Trains on pseudo boxes from `start` (of `retrain_start`); returns the parameters.

    Resumes in `folder`. until: stop after so many steps of the schedule.
    """
    data = detector.config.data
    samples = PseudoSamples(pgt, split, data.scales, augment=data.augment)
    return train_detector(
        detector, samples, folder, mesh=data_mesh(), seed=seed, weights=start, until=until
    )


def detect_retrainer(
    detector: Detector, params: Params, split: TagSplit, *, tag_logits: np.ndarray | None = None
) -> list[dict]:
    """COCO results of every image of the split, with the test-time views."""
    views = image_views(detector, split, tag_logits)
    return detect_split(detector.predictor(params), views)


def image_views(
    detector: Detector, split: TagSplit, tag_logits: np.ndarray | None = None
) -> ImageViews:
    """The images of a split in the test-time views of a retrained detector.

    tag_logits: what a clue network predicts of each image, float `[images, C]`; a config with a
    `test.tag_power` needs them.
    """
    test = detector.config.test
    return ImageViews(
        split,
        test.tta_scales,
        tta_flip=test.tta_flip,
        batch_size=test.batch_size,
        class_factors=tag_factors(test.tag_power, tag_logits),
    )
