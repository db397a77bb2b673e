"""The stages of the pipeline, in order: what each reads, does, writes and measures.

Truth (boxes, masks) is opened here for measuring only, after a stage has done its work; every
function that trains or proposes is given a `TagSplit`.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from experiments.pipeline import detectors, figures
from experiments.pipeline.config import check_weights
from experiments.pipeline.detectors import MilInputs, RetrainConfig
from experiments.pipeline.options import PipelineOptions, settings_json
from experiments.pipeline.run import Run, new_run
from experiments.pipeline.runner import Runner, Stage, say
from experiments.pipeline.work_folder import key_of
from weaksam_jax.data.datasets import dataset_fingerprint, verify_images
from weaksam_jax.data.detections import naming, read_detections
from weaksam_jax.data.mini_set import write_mini
from weaksam_jax.data.store import manifest_path, read_manifest
from weaksam_jax.detectors import Detector, save_detector
from weaksam_jax.detectors.mil import MilDetector
from weaksam_jax.engine.distributed import run_on_leader
from weaksam_jax.errors import BadFile, BadInput, did_you_mean
from weaksam_jax.files import file_fingerprint, fingerprint, read_json, write_json
from weaksam_jax.locks import Lock, holder, locked
from weaksam_jax.outputs import check_apart, check_folder, real
from weaksam_jax.pgt import PgtConfig, make_pgt
from weaksam_jax.settings import change, to_plain

STAGES = ("data", "clues", "proposals", "wsod", "pgt", "retrain", "masks", "report")
EXTRA_STAGES = ("retrain_without_drop",)
# The embedded set is one data set; --seed varies the training on it.
MINI_SEED = 0


def run_pipeline(options: PipelineOptions) -> dict:
    """Runs the whole pipeline (or the chosen stages); returns metrics.json's content.

    Raises `BadInput` before anything is written for what does not fit together, for an `out` that
    is or holds the data set or others' work, and while another process runs in it.
    """
    run = new_run(options)
    wanted = chosen_stages(options.stages)
    stages = wanted or usual_stages(run)
    check_weights(run.config, stages)
    if "retrain" in stages:  # what does not fit is said at once
        detectors.check_start(detectors.retrainer(run.config.retrain, 2))
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
    given |= {"--retrain.optim.init": run.config.retrain.optim.init}
    for name in (*STAGES[1:], *EXTRA_STAGES):
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


def chosen_stages(text: str | None) -> list[str] | None:
    """The names of --stages, checked; None: the whole pipeline."""
    if text is None:
        return None
    chosen, known = (
        [name.strip() for name in text.split(",") if name.strip()],
        STAGES + EXTRA_STAGES,
    )
    for name in chosen:
        if name not in known:
            hint = did_you_mean(name, known, f"choose from {', '.join(known)}")
            raise BadInput("--stages", f"{name} is no stage", hint)
    return chosen


def usual_stages(run: Run) -> list[str]:
    """The stages of the whole pipeline that these options have work for."""
    idle = set() if needs_clues(run) else {"clues"}
    idle |= set() if run.exports else {"proposals"}
    idle |= {"retrain"} if run.options.retrain == "none" else set()
    return [name for name in STAGES if name not in idle]


def needs_clues(run: Run) -> bool:
    """Whether a clue network is trained or loaded: for proposals, or for new photos whose
    detections are weighed with its tags."""
    return run.exports or run.config.retrain.test.tag_power > 0


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

    export_all, train = partial(make_proposals, run, export), partial(train_wsod, run)
    stages = [
        # <out>/data may hold the data set itself: it is not this stage's to delete.
        stage("data", _images(run), (), work=partial(check_data, run), owns_folder=False),
        *([_clue_stage(run)] if needs_clues(run) else []),
        stage("proposals", made_by, store, work=export_all, owns_folder=run.exports),
        stage("wsod", mil, ("proposals",), work=train, together=True),
        stage("pgt", [config.pgt], ("wsod",), work=partial(make_pseudo_boxes, run)),
    ]
    extra = []
    if run.options.retrain != "none":
        stages.append(_retraining(run, "retrain", config.retrain))
        if hasattr(config.retrain.loss, "drop"):
            plain = change(config.retrain, {"loss.drop": None})
            extra.append(replace(_retraining(run, "retrain_without_drop", plain), optional=True))
    stages.append(stage("masks", masks, ("pgt",), work=partial(make_masks, run)))
    names = tuple(one.name for one in stages)
    report = _stage("report", [run.judged], names, run=partial(write_page, run))
    return [*stages, *extra, replace(report, shows=tuple(one.name for one in extra))]


def _stage(name: str, settings: list, reads: tuple, run: Callable[[], dict]) -> Stage:
    """A `Stage` whose settings are plain values, so that their fingerprint is stable."""
    return Stage(name, to_plain(settings), reads, run=run)


def _judged(run: Run, stage: Stage, measure: Callable[[Run], dict], **more) -> Stage:
    """With figures that are measured again when the truth, or the rule of AP50, has changed."""
    return replace(stage, measure=partial(measure, run), truth=lambda: run.judged, **more)


def _retraining(run: Run, name: str, config: RetrainConfig) -> Stage:
    """A stage that retrains on the pseudo boxes."""
    settings = [config, _content(config.optim.init)]
    stage = _stage(name, settings, ("pgt",), run=partial(retrain, run, name, config))
    return _judged(run, stage, partial(figures.retrained, name), together=True)


def _clue_stage(run: Run) -> Stage:
    network = run.config.clue_recipe()
    if isinstance(network, Path):
        network = file_fingerprint(network)
    start = _content(getattr(network, "init", None))
    settings = [run.config.clues, network, start]
    return _stage("clues", settings, ("data",), run=partial(train_clues, run))


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


# What they do


def check_data(run: Run) -> dict:
    """Decodes every image once: what is broken, or too little for what is to be trained, is named
    now, not later."""
    for split in run.data.splits.values():
        verify_images(split)
    train = run.data.splits["train"]
    if not any(record.tags for record in train.records):
        problem = f"has no tag on any of its {len(train.records)} training images"
        hint = "give images with class tags: all else comes of them"
        raise BadInput(run.data.path, problem, hint)
    if needs_clues(run):
        from experiments.pipeline import clues

        clues.check_images(run, train)
    return {}


def train_clues(run: Run) -> dict:
    """Trains the clue network on tags."""
    from experiments.pipeline import clues

    clues.train(run)
    return {}


def make_proposals(run: Run, export) -> dict:
    """Proposals of both splits; clues of the test split come from predicted classes."""
    if run.exports:
        _export(run, export)
    return {}


def _export(run: Run, export) -> None:
    from bridge.proposals.export import export_split
    from bridge.sam.networks import load_sam
    from experiments.pipeline import clues

    splits = run.data.splits
    network = clues.load(run, splits["train"])
    sam = load_sam(run.config.sam) if export.source == "sam" else None
    for role, labels in (("train", "tags"), ("test", "predicted")):
        settings = replace(export, labels=labels)
        export_split(
            splits[role], network, sam, config=settings, root=run.proposals, clue_root=run.clues
        )


def train_wsod(run: Run) -> dict:
    """Trains the MIL detector on tags and proposals; detects on both splits."""
    config, split = run.config.wsod, run.data.splits["train"]
    start = detectors.given_weights(config) or detectors.packaged_weights(run.folder, config)
    detector, inputs = MilDetector(config, split.classes), MilInputs(run.proposals, run.clues)
    folder = run.folder.stage("wsod")
    params = detectors.train_mil(detector, split, inputs, folder=folder, seed=run.seed, start=start)
    return run_on_leader(lambda: _finish_wsod(run, detector, params))


def _finish_wsod(run: Run, detector: MilDetector, params: dict) -> dict:
    """Writes the detector and its detections on both splits."""
    save_detector(run.folder.weights("wsod"), detector, params)
    inputs, folder = MilInputs(run.proposals, run.clues), run.folder.stage("wsod")
    for role, split in run.data.splits.items():
        found = detectors.detect_mil(detector, params, split, inputs=inputs, folder=folder)
        write_json(run.folder.detections("wsod", role), found)
    return {}


def make_pseudo_boxes(run: Run) -> dict:
    """Adaptive pseudo ground truth, and top-1 beside it."""
    top1 = replace(run.config.pgt, rule="top_k", k=1)
    for name, settings in (("pgt", run.config.pgt), ("top1", top1)):
        write_json(run.folder.pseudo_boxes(name), pseudo_boxes(run, settings))
    return {}


def pseudo_boxes(run: Run, settings: PgtConfig) -> dict:
    """The COCO dictionary that these settings make of the MIL detector's detections."""
    path = run.folder.detections("wsod", "train")
    detections = read_detections(path, run.data.splits["train"])
    with naming(path):
        return make_pgt(detections, run.data.splits["train"], settings)


def retrain(run: Run, name: str, config: RetrainConfig) -> dict:
    """Trains the detector on the pseudo boxes, from ImageNet weights (`init`, a package) or, on the
    mini set, from the MIL detector's backbone. name: the stage."""
    split = run.data.splits["train"]
    detector = detectors.retrainer(config, split.classes)
    with naming(run.folder.pseudo_boxes()):
        params = detectors.train_retrainer(
            detector,
            read_json(run.folder.pseudo_boxes()),
            split,
            folder=run.folder.stage(name),
            seed=run.seed,
            start=detectors.retrain_start(run.folder, config),
        )
    return run_on_leader(lambda: _finish_retrain(run, name, detector, params=params))


def _finish_retrain(run: Run, name: str, detector: Detector, params: dict) -> dict:
    """Writes the detector and its detections on the test split."""
    save_detector(run.folder.weights(name), detector, params)
    write_json(run.folder.detections(name, "test"), detect_retrained(run, detector, params))
    return {}


def detect_retrained(run: Run, detector: Detector, params: dict) -> list[dict]:
    """COCO results of a retrained detector on the run's test split."""
    from experiments.pipeline.clues import stored_logits

    test = run.data.splits["test"]
    logits = stored_logits(run.clues, test) if detector.config.test.tag_power else None
    return detectors.detect_retrainer(detector, params, test, tag_logits=logits)


def make_masks(run: Run) -> dict:
    """SAM prompted by the pseudo boxes."""
    from bridge.sam.networks import load_sam
    from bridge.sam.pseudo_masks import pseudo_masks

    path, train = run.folder.pseudo_masks, run.data.splits["train"]
    with naming(run.folder.pseudo_boxes()):
        pgt = read_json(run.folder.pseudo_boxes())
        pseudo_masks(load_sam(run.config.sam), pgt, train, config=run.config.masks, out_path=path)
    return {}


def write_page(run: Run) -> dict:
    """The HTML page."""
    from experiments.pipeline.report import report_files
    from weaksam_jax.report.page import write_report

    write_report(report_files(run), run.data.splits, run.data.truths)
    return {}
