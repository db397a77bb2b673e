"""The stage graph of a run: which stages there are, what decides whether each is done, and the run
of all of them in a locked folder.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from experiments.pipeline import detectors, figures, stages
from experiments.pipeline.config import check_weights
from experiments.pipeline.detectors import WITHOUT_DROP, RetrainConfig
from experiments.pipeline.options import PipelineOptions, settings_json
from experiments.pipeline.run import Run, new_run
from experiments.pipeline.runner import Runner, Stage, say
from experiments.pipeline.work_folder import key_of
from weaksam_jax.data.datasets import dataset_fingerprint
from weaksam_jax.data.mini_set import CLASSES, write_mini
from weaksam_jax.data.store import manifest_path, read_manifest
from weaksam_jax.detectors import RETRAINERS, Detector
from weaksam_jax.detectors.mil import MilDetector
from weaksam_jax.engine.distributed import run_on_leader
from weaksam_jax.errors import BadFile, BadInput, did_you_mean
from weaksam_jax.files import file_fingerprint, fingerprint, read_metadata, write_json
from weaksam_jax.locks import Lock, holder, locked
from weaksam_jax.outputs import check_apart, check_folder, real
from weaksam_jax.settings import change, to_plain

# Every detector that is retrained is a stage of its own (`detectors.retrain_kinds`).
STAGES = ("data", "clues", "proposals", "wsod", "pgt", "retrain", "masks", "report")
RETRAININGS = ("retrain", *(f"retrain_{kind}" for kind in RETRAINERS))
# The embedded set is one data set; --seed varies the training on it.
MINI_SEED = 0


def run_pipeline(options: PipelineOptions) -> dict:
    """Runs the whole pipeline (or the chosen stages); returns metrics.json's content.

    Raises `BadInput` before anything is written for what does not fit together, for an `out` that
    is or holds the data set or others' work, and while another process runs in it.
    """
    run = new_run(options)
    wanted = chosen_stages(run)
    names = wanted or usual_stages(run)
    check_weights(run.config, names)
    check_starts(run, names)
    if run.options.data != "mini":
        _ = run.data.names  # a data set that is none is named before anything is written
    held: list[Lock] = []
    with contextlib.ExitStack() as stack:
        run_on_leader(lambda: held.extend([stack.enter_context(hold(run))]))
        run_on_leader(lambda: prepare(run))
        runner = Runner(run.folder, run.seed, lock=held[0] if held else None)
        metrics = runner.run(graph(run), wanted)
    page = run.folder.report
    run_on_leader(lambda: say(f"finished: {page if page.exists() else run.folder.root}"))
    return metrics


def check_starts(run: Run, names: Sequence[str]) -> None:
    """`BadInput` when what a detector of these stages would start from does not fit it, or has seen
    more than it may: at once, and not after hours."""
    configs = {"wsod": run.config.wsod, **run.retrainings}
    for stage, config in configs.items():
        if not {stage, f"{stage}{WITHOUT_DROP}"} & set(names):
            continue
        path = detectors.init_file(config)
        if stage != "wsod" and detectors.starts_from_wsod(config):
            path = None if "wsod" in names else run.folder.weights("wsod")
            detectors.check_shared(config, run.config.wsod, stage)
        if path is not None and path.exists():
            detectors.check_permission(path, run.options.allow_supervision, stage)
            detectors.check_start(_detector(run, stage, path), path)


def _detector(run: Run, stage: str, start: Path) -> Detector:
    """The detector of a stage. The data set's classes are read where `start` has layers of its own
    for each."""
    config = run.config.wsod if stage == "wsod" else run.retrainings[stage]
    classes = 2 if "backbone" in read_metadata(start) else _classes(run)
    return MilDetector(config, classes) if stage == "wsod" else detectors.retrainer(config, classes)


def _classes(run: Run) -> tuple[str, ...]:
    """Those of the data set, also of the embedded one before it is written."""
    if run.options.data == "mini" and not run.folder.mini_set.exists():
        return CLASSES
    return run.data.splits["train"].classes


def hold(run: Run) -> AbstractContextManager[Lock]:
    """The lock of the run's folder, for this process alone; `BadInput` as `run_pipeline`."""
    folder, own = run.folder, list(run.folder.own_files)
    if run.options.data == "mini":
        own.append("data")
    elif real(run.options.data) != real(folder.mini_set) or not holder(folder.root):
        check_folder("--out", folder.root, run.options.data)
    given = {"--proposals": None if run.exports else run.proposals, "--sam": run.config.sam}
    given |= {"--clues": run.config.clues, "--weaktr.init": run.config.weaktr.init}
    given |= {"--wsod.optim.init": run.config.wsod.optim.init}
    for stage, config in run.retrainings.items():
        given[f"--{stage.replace('_', '-')}.optim.init"] = config.optim.init
    further = (f"{stage}{end}" for stage in RETRAININGS for end in ("", WITHOUT_DROP))
    for name in dict.fromkeys((*STAGES[1:], *further)):
        check_apart("--out", folder.stage(name), given)
        key_of(folder.stage(name))
    return locked(folder.root, "run", own)


def prepare(run: Run) -> None:
    """Writes settings.json and, once, the embedded set; it is small, seeded and no stage."""
    if run.options.data == "mini":
        say("the embedded mini set is used (give --data for a real data set or your own photos)")
        if not run.folder.mini_set.exists():
            write_mini(run.folder.mini_set.parent, MINI_SEED)
    write_json(run.folder.settings, settings_json(run.options), indent=1)


# Which stages there are


def stage_names(run: Run) -> list[str]:
    """All stages of a run, but those that run only when they are named."""
    at = STAGES.index("retrain")
    return [*STAGES[:at], *run.retrainings, *STAGES[at + 1 :]]


def chosen_stages(run: Run) -> list[str] | None:
    """The names of --stages, checked; None: the whole pipeline."""
    if run.options.stages is None:
        return None
    chosen = [name.strip() for name in run.options.stages.split(",") if name.strip()]
    known = [*stage_names(run), *(f"{stage}{WITHOUT_DROP}" for stage in run.retrainings)]
    for name in chosen:
        if name not in known:
            hint = did_you_mean(name, known, f"choose from {', '.join(known)}")
            raise BadInput("--stages", f"{name} is no stage", hint)
    return chosen


def usual_stages(run: Run) -> list[str]:
    """The stages of the whole pipeline that these options have work for."""
    idle = set() if stages.needs_clues(run) else {"clues"}
    idle |= set() if run.exports else {"proposals"}
    return [name for name in stage_names(run) if name not in idle]


def graph(run: Run) -> list[Stage]:
    """The stage graph. Settings and inputs of every stage are named here, so that a change of one
    makes the stage run again."""
    config = run.config
    export = replace(config.export, source=run.options.proposals if run.exports else "sam")
    sam = [config.sam, _content(config.sam)]
    made_by = [export, sam, config.clue_use, *_stored_elsewhere(run)]
    mil = [config.wsod, _content(config.wsod.optim.init)]
    store = ("data", "clues") if run.exports else ("data",)
    masks = [config.masks, sam]

    def stage(name: str, settings: list, reads: tuple, work: partial, **more) -> Stage:
        return _judged(run, _stage(name, settings, reads, run=work), getattr(figures, name), **more)

    export_all, train = partial(stages.make_proposals, run, export), partial(stages.train_wsod, run)
    found = [
        # <out>/data may hold the data set itself: it is not this stage's to delete.
        stage("data", _images(run), (), work=partial(stages.check_data, run), owns_folder=False),
        *([_clue_stage(run)] if stages.needs_clues(run) else []),
        stage("proposals", made_by, store, work=export_all, owns_folder=run.exports),
        stage("wsod", mil, ("proposals",), work=train, together=True),
        stage("pgt", [config.pgt], ("wsod",), work=partial(stages.make_pseudo_boxes, run)),
    ]
    extra = []
    for name, own in run.retrainings.items():
        found.append(_retraining(run, name, own))
        if hasattr(own.loss, "drop"):
            plain = change(own, {"loss.drop": None})
            without = _retraining(run, f"{name}{WITHOUT_DROP}", plain)
            extra.append(replace(without, optional=True))
    found.append(stage("masks", masks, ("pgt",), work=partial(stages.make_masks, run)))
    names = tuple(one.name for one in found)
    report = _stage("report", [run.judged], names, run=partial(stages.write_page, run))
    return [*found, *extra, replace(report, shows=tuple(one.name for one in extra))]


def _stage(name: str, settings: list, reads: tuple, run: Callable[[], dict]) -> Stage:
    """A `Stage` whose settings are plain values, so that their fingerprint is stable."""
    return Stage(name, to_plain(settings), reads, run=run)


def _judged(run: Run, stage: Stage, measure: Callable[[Run], dict], **more) -> Stage:
    """With figures that are measured again when the truth, or the rule of AP50, has changed."""
    return replace(stage, measure=partial(measure, run), truth=lambda: run.judged, **more)


def _retraining(run: Run, name: str, config: RetrainConfig) -> Stage:
    """A stage that retrains on the pseudo boxes."""
    settings = [config, _content(config.optim.init)]
    stage = _stage(name, settings, ("pgt",), run=partial(stages.retrain, run, name, config))
    return _judged(run, stage, partial(figures.retrained, name), together=True)


def _clue_stage(run: Run) -> Stage:
    network = run.config.clue_recipe()
    if isinstance(network, Path):
        network = file_fingerprint(network)
    start = _content(getattr(network, "init", None))
    settings = [run.config.clues, network, start]
    return _stage("clues", settings, ("data",), run=partial(stages.train_clues, run))


def _images(run: Run) -> list:
    """What identifies the images and tags of both splits."""
    names, path, cache = run.data.names.values(), run.data.path, run.folder.hashes
    return run_on_leader(
        lambda: [[[name, dataset_fingerprint(path, name, cache)] for name in names]]
    )


def _stored_elsewhere(run: Run) -> list:
    """What identifies a proposal store made elsewhere; nothing for the run's own."""
    if run.exports:
        return [[]]
    found = []
    for name in run.data.names.values():
        manifest = read_manifest(run.proposals, name)
        if manifest is None:
            path = manifest_path(run.proposals, name)
            hint = f"finish python -m bridge.export --split {name} into that folder"
            raise BadFile(path, "does not exist", hint)
        found.append(fingerprint(manifest))
    return [found]


def _content(name: str | Path | None) -> str | None:
    """What identifies the weights in a file, so that another file of that name is noticed."""
    return file_fingerprint(Path(name)) if name and Path(name).is_file() else None
