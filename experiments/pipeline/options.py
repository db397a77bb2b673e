"""The flags of the main jobs: preset, then --config, then what the command line says."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from experiments.pipeline.config import PRESETS, PipelineConfig, mini
from experiments.pipeline.detectors import PAPER, Method, retrain_fault, retrain_kinds
from experiments.pipeline.jobs import Job
from weaksam_jax.detectors import RETRAINERS
from weaksam_jax.errors import BadInput, BadSetting
from weaksam_jax.files import read_json
from weaksam_jax.flags import FLAT, parse, peek
from weaksam_jax.outputs import OutRun
from weaksam_jax.pgt import PgtConfig
from weaksam_jax.ranges import Fault, Seed, Settings, shown
from weaksam_jax.settings import change, from_plain, to_plain
from weaksam_jax.supervision import Permission

# Flags of one call, which settings.json does not keep: they do not decide what a run holds.
OF_A_CALL = ("out", "stages", "config", "allow_supervision")
# Names in a file: flags whose values are text, and the sections of the settings.
_TEXTS = ("data", "proposals", "wsod", "retrain", "segment", "preset")
_SECTIONS = tuple(one.name for one in fields(PipelineConfig))


@dataclass(frozen=True)
class PipelineOptions(Settings):
    """Flags of the main jobs."""

    data: str = "auto"
    """mini (embedded), auto, tfds, or a folder: VOCdevkit, COCO, or images/ + tags.csv."""
    out: OutRun | None = None
    """The run folder; the same folder goes on where it stopped [runs/<data>-<preset>]."""
    stages: str | None = None
    """Only these, separated by commas (their inputs must be finished) [all]."""
    proposals: str = "sam"
    """sam, selective_search, or the folder of a proposal store made by bridge.export."""
    wsod: Literal["mist", "oicr"] = "mist"
    """How the MIL detector mines pseudo boxes."""
    retrain: str = "faster_rcnn"
    """Retrained on the pseudo boxes: faster_rcnn, dino, both with a comma between, or none."""
    segment: Literal["none"] = "none"
    """The instance segmenter trained on the pseudo masks; there is none yet."""
    preset: Literal["auto", "mini", "light", "voc07", "voc12", "coco14"] = "auto"
    """mini: small networks for the mini set; light: photographs on a CPU; voc07, voc12, coco14: the
    paper's networks and schedules, for GPUs, from published weights [mini or light by the data]."""
    config: Path | None = None
    """A JSON of flags and settings, such as settings.json of another run; flags override it."""
    seed: Seed = 0
    """Of every training."""
    allow_supervision: tuple[Permission, ...] = ()
    """Let detectors start from weights that saw boxes or masks, or do not say (unknown)."""
    settings: Annotated[PipelineConfig, FLAT] = field(default_factory=mini)
    """Settings of every stage; the defaults are the preset's."""

    def misfits(self) -> Iterator[Fault]:
        """Settings are those of the detectors that are retrained."""
        if fault := retrain_fault(self.retrain):
            yield Fault("retrain", *fault)
            return
        stages = retrain_kinds(self.retrain)
        for kind in RETRAINERS:
            section = f"retrain_{kind}"
            if section not in stages and getattr(self.settings, section) is not None:
                problem = f"is {self.retrain}, but there are settings of {section}"
                yield Fault("retrain", problem, f"name {kind} behind a comma, or leave them out")
        for stage, kind in stages.items():
            if not isinstance(getattr(self.settings, stage), RETRAINERS[kind].Config):
                problem = f"is {self.retrain}, but the settings {stage} are not of {kind}"
                yield Fault("retrain", problem, "take them out of the file, or correct it")


def parse_options(argv: Sequence[str], doc: str, job: Job) -> PipelineOptions:
    """Reads the flags of a main job: preset < --config < flags.

    What a preset says of pseudo boxes is for its own rule, so another `--pgt.rule` starts from that
    rule's own values. Raises `BadInput` for what does not fit, with the nearest right name.
    """
    path = peek(argv, "config")
    values = {} if path is None else _read_config(Path(path))
    data = job.resolve(peek(argv, "data") or values.get("data", "auto"))
    preset = peek(argv, "preset") or values.get("preset", "auto")
    if preset == "auto":
        preset = "mini" if data == "mini" else "light"
    _check_preset(argv, values, preset)
    options = parse(
        PipelineOptions, argv, doc, name=job.name, default=_start(argv, values, preset, job=job)
    )
    if data == "auto":
        raise BadInput("--data", "is missing", "give the folder of your photos, see --help")
    out = options.out or Path("runs") / f"{Path(data.replace(':', '-')).resolve().name}-{preset}"
    settings = replace(options.settings, pgt=options.settings.pgt.resolved())
    method = settings.wsod.model.method  # a flag of its own may have changed it
    wsod = method if method in get_args(Method) else options.wsod
    return replace(options, data=data, out=out, preset=preset, wsod=wsod, settings=settings)


def settings_json(options: PipelineOptions) -> dict[str, Any]:
    """What settings.json keeps: every flag and setting that decides what a run holds."""
    plain = to_plain(options)
    return {name: value for name, value in plain.items() if name not in OF_A_CALL}


def read_settings(path: Path) -> PipelineOptions:
    """The flags and settings of the run whose settings.json is at `path`.

    Raises `BadSetting` when it has names that are no flag or setting.
    """
    values = _read_config(path)
    names = _retrainers(values.get("retrain"))
    start = PipelineOptions(retrain=names, settings=PRESETS["mini"]("mist", names))
    return from_plain(PipelineOptions, values, path, base=start)


def _read_config(path: Path) -> Mapping[str, Any]:
    values = read_json(path)
    if not isinstance(values, Mapping):
        raise BadSetting(path, "", "is no object of settings", hint="give a JSON object {...}")
    if "config" in values:
        raise BadSetting(path, "config", "names another file", hint="write its settings here")
    if "allow_supervision" in values:
        hint = "give it on the command line"
        raise BadSetting(path, "allow_supervision", "is no setting but a permission", hint=hint)
    for name, value in values.items():
        first = name.partition(".")[0]
        flag = name in _TEXTS and isinstance(value, str | None)
        if first in _SECTIONS and not flag:
            hint = f'nest it: {{"settings": {{"{first}": {{...}}}}}}, as settings.json of a run'
            raise BadSetting(path, name, "is a setting of a stage", hint=hint)
        if name in _TEXTS and not flag:
            raise BadSetting(path, name, f"is {shown(value)}, not text", hint="correct it")
    return values


def _check_preset(argv: Sequence[str], values: Mapping, preset: str) -> None:
    """`BadInput` for a flag that chooses a preset or recipe when --config lists every setting, as
    settings.json of a run does: nothing of the flag's would be left."""
    listed = values.get("settings")
    if not isinstance(listed, Mapping) or not set(_SECTIONS) <= listed.keys():
        return
    flag, stored = peek(argv, "preset"), values.get("preset")
    if flag is not None and stored is not None and flag != stored:
        hint = "leave it out, or take the settings out of the file"
        raise BadInput("--preset", f"{flag} is not that of --config ({stored})", hint)
    flag, stored = peek(argv, "retrain"), values.get("retrain", "faster_rcnn")
    if flag not in (None, "none", stored) and not retrain_fault(flag):
        hint = "leave it out, or take the settings out of the file"
        raise BadInput("--retrain", f"{flag} is not that of --config ({stored})", hint)
    flag, stored = peek(argv, "wsod"), values.get("wsod", "mist")
    if preset in PAPER and flag is not None and flag != stored:
        hint = f"its recipe is another one: give --preset {preset} --wsod {flag} without the file"
        raise BadInput("--wsod", f"{flag} is not that of --config ({stored})", hint)


def _start(argv: Sequence[str], values: Mapping, preset: str, job: Job) -> PipelineOptions:
    """What the flags start from: the preset with the values of --config."""
    flag = peek(argv, "wsod")
    method = "oicr" if (flag or values.get("wsod")) == "oicr" else "mist"
    values = _with_retrainers(values, peek(argv, "retrain"))
    names = _retrainers(values.get("retrain"))
    make = PRESETS.get(preset, PRESETS["mini"]) if isinstance(preset, str) else PRESETS["mini"]
    config = replace(make(method, names), ap50=job.ap50)
    config = _with_rule(config, _inner(values, "settings", "pgt", "rule"))
    start = PipelineOptions(wsod=method, retrain=names, settings=config)
    start = from_plain(PipelineOptions, values, peek(argv, "config") or "", base=start)
    config = _with_rule(start.settings, peek(argv, "pgt.rule"))
    if flag is not None:
        config = change(config, {"wsod.model.method": method})
    return replace(start, settings=config)


def _retrainers(names: Any) -> str:
    """A value of --retrain; the default for what is none, which is refused later."""
    return names if isinstance(names, str) and not retrain_fault(names) else "faster_rcnn"


def _with_retrainers(values: Mapping, flag: str | None) -> Mapping:
    """A file's values with --retrain in place of its own; "none" takes its settings away."""
    if flag is None:
        return values
    changed = {**values, "retrain": _retrainers(flag)}
    settings = values.get("settings")
    if flag == "none" and values.get("retrain") != "none" and isinstance(settings, Mapping):
        gone = {"retrain", *(f"retrain_{kind}" for kind in RETRAINERS)}
        changed["settings"] = {name: one for name, one in settings.items() if name not in gone}
    return changed


def _with_rule(config: PipelineConfig, rule: Any) -> PipelineConfig:
    """With that rule's own thresholds, when it is another rule than the config's."""
    return config if rule in (None, config.pgt.rule) else replace(config, pgt=PgtConfig())


def _inner(values: Any, *names: str) -> Any:
    """A nested value, None where there is none."""
    for name in names:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values
