"""What the stages of the pipeline do, in order.

Every function that trains or proposes is given a `TagSplit`; truth (boxes, masks) is opened for
figures (`experiments.pipeline.figures`) and the page only.
"""

from dataclasses import replace

from experiments.pipeline import detectors, ledger
from experiments.pipeline.detectors import MilInputs, RetrainConfig
from experiments.pipeline.run import Run
from experiments.pipeline.stored import StoredDetector, find
from weaksam_jax.data.datasets import verify_images
from weaksam_jax.data.detections import naming, read_detections
from weaksam_jax.detectors import Detector, save_detector
from weaksam_jax.detectors.mil import MilDetector
from weaksam_jax.engine.distributed import run_on_leader
from weaksam_jax.engine.weights import Weights
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_json, write_json
from weaksam_jax.pgt import PgtConfig, make_pgt


def needs_clues(run: Run) -> bool:
    """Whether a clue network is trained or loaded: for proposals, or for new photos whose
    detections are weighed with its tags."""
    weighed = (config.test.tag_power > 0 for config in run.retrainings.values())
    return run.exports or any(weighed)


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
    return ledger.clues(run)


def make_proposals(run: Run, export) -> dict:
    """Proposals of both splits; clues of the test split come from predicted classes."""
    if run.exports:
        _export(run, export)
    return ledger.proposals(run, export.source)


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
    start = detectors.wsod_start(run.folder, config, run.options.allow_supervision)
    detector, inputs = MilDetector(config, split.classes), MilInputs(run.proposals, run.clues)
    folder = run.folder.stage("wsod")
    params = detectors.train_mil(detector, split, inputs, folder=folder, seed=run.seed, start=start)
    return _finish(run, "wsod", detector, params=params, start=start)


def _finish(
    run: Run, name: str, detector: Detector, *, params: dict, start: Weights | None
) -> dict:
    """Writes a detector, and its detections on the splits that the run keeps them of."""
    weights, folder = run.folder.weights(name), run.folder.stage(name)
    seen = ledger.of_training(run, start)
    run_on_leader(lambda: save_detector(weights, detector, params, seen=seen))
    proposals = run.proposals if detector.on_proposals else None
    stored = StoredDetector(weights, detector, params, proposals=proposals, clues=run.clues)
    for role in ("train", "test") if detector.on_proposals else ("test",):
        journal = folder / f"unfinished_{role}.jsonl"
        out = run.folder.detections(name, role)
        find(stored, run.data.splits[role], out=out, journal=journal)
    return run_on_leader(lambda: ledger.start(run, name, start))


def make_pseudo_boxes(run: Run) -> dict:
    """Adaptive pseudo ground truth, and top-1 beside it."""
    top1 = replace(run.config.pgt, rule="top_k", k=1)
    for name, settings in (("pgt", run.config.pgt), ("top1", top1)):
        write_json(run.folder.pseudo_boxes(name), pseudo_boxes(run, settings))
    return {}


def pseudo_boxes(run: Run, settings: PgtConfig) -> dict:
    """The COCO dictionary that these settings make of the MIL detector's detections."""
    train = run.data.splits["train"]
    detections = read_detections(run.folder.detections("wsod", "train"), train)
    return make_pgt(detections, train, settings)


def retrain(run: Run, name: str, config: RetrainConfig) -> dict:
    """Trains the detector on the pseudo boxes, from ImageNet weights (`init`, a package) or, on the
    mini set, from the MIL detector's backbone. name: the stage."""
    split = run.data.splits["train"]
    detector = detectors.retrainer(config, split.classes)
    start = detectors.retrain_start(run.folder, config, run.options.allow_supervision)
    with naming(run.folder.pseudo_boxes()):
        params = detectors.train_retrainer(
            detector,
            read_json(run.folder.pseudo_boxes()),
            split,
            folder=run.folder.stage(name),
            seed=run.seed,
            start=start,
        )
    return _finish(run, name, detector, params=params, start=start)


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
    return ledger.sam(run)


def write_page(run: Run) -> dict:
    """The HTML page."""
    from experiments.pipeline.report import report_files
    from weaksam_jax.report.page import write_report

    write_report(report_files(run), run.data.splits, run.data.truths)
    return {}
