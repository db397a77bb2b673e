"""Detections of a detector file on any data set: MIL from any proposals, or Faster R-CNN.

    python -m experiments.detect --weights runs/voc07/wsod/params.safetensors --preset light \\
        --data /path/to/VOCdevkit/VOC2007 --split test --proposals runs/voc07/proposals \\
        --clues runs/voc07/clues --backbone runs/voc07/backbone/lite0.safetensors --out found
    python -m experiments.detect --weights faster_rcnn.safetensors --preset voc07_faster_rcnn \\
        --data /path/to/VOCdevkit/VOC2007 --split test --out found

--weights: a detector trained here (wsod/ or retrain/params.safetensors of a run), or a published
one that bridge.convert has converted. A Faster R-CNN (presets *_faster_rcnn) needs no proposals;
its file states backbone, pixels, RoIAlign, anchors and what is known of its classes, and is
followed; detections of classes that the data does not have are left out. --proposals, for MIL: a
store of any origin:

    a run's own              runs/NAME/proposals
    SAM, selective search    python -m bridge.export --help
    released pickles         python -m bridge.released_pickles read --data PATH --split S \\
                                 --pickle F.pkl --store STORE

--preset names the settings that the detector was trained with, --settings.* changes one of them;
settings that only test reads may be chosen freely: test_scales, test_mirrored, test_batch,
max_proposals, min_side, nms, max_detections, every_class; of a Faster R-CNN views, mirrored,
test_batch, test_pre_nms, test_post_nms, score_threshold, nms, max_detections, tag_power.

Writes OUT/detections.json (COCO results), OUT/settings.json, and where the data set has boxes
OUT/metrics.json: AP50 by both rules of VOC, COCO AP, and CorLoc (ours and as the released script
counts it), which are printed too. AP wants a test split, CorLoc a training split. --voc-files
writes what the VOC server takes, for test sets without annotations as well. A detection that was
stopped goes on with the same command; a finished one is made anew, never reused.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tyro

from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags, open_truth, split_names
from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.data.store import read_manifest
from weaksam_jax.detectors.faster_rcnn import config as retraining
from weaksam_jax.detectors.faster_rcnn import recipes as retrain_recipes
from weaksam_jax.detectors.faster_rcnn.config import RetrainSettings
from weaksam_jax.detectors.mil import recipes
from weaksam_jax.detectors.mil.config import WsodSettings
from weaksam_jax.engine.journal import Journal
from weaksam_jax.errors import BadInput
from weaksam_jax.files import file_fingerprint, fingerprint, write_json

JOURNAL = "unfinished.jsonl"
FASTER_RCNN: dict[str, Callable[[], RetrainSettings]] = {
    "mini_faster_rcnn": retraining.mini,
    "light_faster_rcnn": retraining.light,
    "voc07_faster_rcnn": retrain_recipes.voc07,
    "voc12_faster_rcnn": retrain_recipes.voc12,
    "coco14_faster_rcnn": retrain_recipes.coco14,
}


@dataclass(frozen=True)
class Detect:
    """Detects with a stored detector and measures what it found."""

    weights: Path
    """The detector's parameters (.safetensors)."""
    data: str
    """The data set: VOCdevkit, COCO folder, images/ + tags.csv, or tfds:NAME."""
    out: Path
    """Folder that is written."""
    proposals: Path | None = None
    """The proposal store of a MIL detector; it must hold the split."""
    split: str | None = None
    """The images to detect on [the data set's test split]."""
    preset: str = "mini"
    """Settings that the detector was trained with; a wrong name lists those there are."""
    clues: Path | None = None
    """Stored clues, for settings with clue_evidence, clue_power or tag_power (light)."""
    backbone: Path | None = None
    """Weights of a frozen backbone (light: backbone/lite0.safetensors of a run)."""
    voc_files: Path | None = None
    """Folder for comp4_det_<split>_<class>.txt, the files of the VOC evaluation server."""
    settings: WsodSettings | RetrainSettings = tyro.MISSING
    """Every setting of the detector; the defaults are the preset's."""


def main(argv: list[str] | None = None) -> None:
    detect(parse(argv))


def parse(argv: list[str] | None) -> Detect:
    """Reads the flags. The preset sets the defaults of `--settings.*`."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default=Detect.preset)
    name = first.parse_known_args(argv)[0].preset
    known = recipes.PRESETS | FASTER_RCNN
    if name not in known:
        raise BadInput("--preset", f"{name} is no preset", f"choose from {', '.join(known)}")
    missing = dict.fromkeys(("weights", "data", "out"), tyro.MISSING)
    return tyro.cli(
        Detect,
        args=argv,
        prog="python -m experiments.detect",
        description=f"{__doc__}\nPresets: {', '.join(known)}.",
        default=Detect(**missing, preset=name, settings=known[name]()),
        config=(tyro.conf.AvoidSubcommands,),
    )


def detect(options: Detect) -> list[dict]:
    """Detects, writes the results and prints the figures; returns COCO results."""
    options = replace(options, split=options.split or split_names(options.data)["test"])
    split = open_tags(options.data, options.split)
    faster_rcnn = isinstance(options.settings, RetrainSettings)
    found = (find_by_faster_rcnn if faster_rcnn else find_by_mil)(options, split)
    write_json(options.out / "detections.json", found)
    (options.out / JOURNAL).unlink()
    report(options, split, found)
    return found


def find_by_mil(options: Detect, split: TagSplit) -> list[dict]:
    """COCO results of a MIL detector."""
    from weaksam_jax.detectors.mil.detect import detect_wsod
    from weaksam_jax.engine.checkpoint import load_params

    if options.proposals is None:
        hint = "name a store, see --help, or choose a preset *_faster_rcnn"
        raise BadInput("--proposals", f"is missing, which {options.preset} needs", hint)
    params = load_params(options.weights)
    backbone = None if options.backbone is None else load_params(options.backbone)
    journal = open_journal(options, split)
    place = split, options.proposals, options.settings, options.out
    try:
        return detect_wsod(params, *place, backbone, options.clues, journal)
    except BadInput as error:
        if error.path != "weights":
            raise
        raise BadInput(options.weights, error.problem, error.hint) from error


def find_by_faster_rcnn(options: Detect, split: TagSplit) -> list[dict]:
    """COCO results of a Faster R-CNN, with the settings that its file states."""
    from experiments.detect_faster_rcnn import detect_faster_rcnn, read_detector

    for name in ("proposals", "backbone"):
        if getattr(options, name) is not None:
            problem = f"is not for a Faster R-CNN ({options.preset})"
            raise BadInput(f"--{name}", problem, "leave it out, or choose a preset of MIL")
    params, settings, shown = read_detector(options.weights, options.settings, split)
    journal = open_journal(replace(options, settings=settings), shown)
    return detect_faster_rcnn(params, shown, settings, journal, options.clues)


def open_journal(options: Detect, split: TagSplit) -> Journal:
    """Writes settings.json and opens the journal of this job."""
    write_json(options.out / "settings.json", describe(options), indent=1)
    return Journal(options.out / JOURNAL, job_key(options, split))


def describe(options: Detect) -> dict:
    """settings.json: every flag and setting as plain values, and what the weights were."""
    plain = {name: str(value) for name, value in vars(options).items() if value is not None}
    weights = file_fingerprint(options.weights)
    return {**plain, "weights_fingerprint": weights, "settings": asdict(options.settings)}


def job_key(options: Detect, split: TagSplit) -> str:
    """A hash of everything that decides the detections."""
    files = [path and file_fingerprint(path) for path in (options.weights, options.backbone)]
    stores = [path and str(path.resolve()) for path in (options.proposals, options.clues)]
    manifest = options.proposals and read_manifest(options.proposals, split.split)
    images = [[one.image_id, one.file_name, one.width, one.height] for one in split.records]
    return fingerprint(
        [files, stores, manifest, images, split.category_ids, asdict(options.settings)]
    )


def report(options: Detect, split: TagSplit, found: list[dict]) -> None:
    """Writes metrics.json and the server's files, and prints the figures."""
    from weaksam_jax.evaluate import write_comp4

    print(f"{len(found)} detections on {len(split.records)} images: {options.out}")
    if options.voc_files is not None:
        paths = write_comp4(found, split, options.voc_files)
        print(f"{len(paths)} files such as {paths[0]}")
    truth = open_truth(options.data, options.split)
    if truth is None:
        print("the data set has no boxes of this split to compare with")
        return
    figures = measure(found, truth)
    write_json(options.out / "metrics.json", figures, indent=1)
    print(table(figures))


def measure(found: list[dict], truth: TruthSplit) -> dict:
    """AP and CorLoc in percent by every convention, each with its classes where it has them."""
    from weaksam_jax.evaluate import coco_ap, corloc, voc_ap

    return {
        "voc07": voc_ap(found, truth, rule="07"),
        "voc12": voc_ap(found, truth, rule="12"),
        "coco": coco_ap(found, truth),
        "corloc": corloc(found, truth),
        "corloc_release": corloc(found, truth, convention="release"),
    }


def table(figures: dict) -> str:
    """The figures one a line, then the classes."""
    coco = figures["coco"]
    rows = {
        "AP50, VOC's 11 points": figures["voc07"]["ap50"],
        "AP50, VOC's area": figures["voc12"]["ap50"],
        "AP, COCO's .50:.95": coco["ap"],
        "AP50, COCO": coco["ap50"],
        "AP75, COCO": coco["ap75"],
        "CorLoc": figures["corloc"]["corloc"],
        "CorLoc as released": figures["corloc_release"]["corloc"],
    }
    lines = [f"  {name:24}  {value:6.2f}" for name, value in rows.items()]
    columns = [figures[name]["per_class"] for name in ("voc07", "voc12", "corloc")]
    lines.append(f"  {'class':24}  AP(11)  AP(area)  CorLoc")
    for name in columns[2]:  # every class that is there; difficult objects alone have no AP
        values = [f"{column[name]:6.2f}" if name in column else "     -" for column in columns]
        lines.append("  {:24}  {}    {}  {}".format(name, *values))
    return "\n".join(lines)


if __name__ == "__main__":
    from weaksam_jax.engine.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    sys.exit(entry_point(main))
