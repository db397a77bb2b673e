"""Detections of a MIL detector file on any data set, from any proposals.

    python -m experiments.detect --weights runs/voc07/wsod/params.safetensors --preset light \\
        --data /path/to/VOCdevkit/VOC2007 --split test --proposals runs/voc07/proposals \\
        --clues runs/voc07/clues --backbone runs/voc07/backbone/lite0.safetensors --out found

--weights: a detector trained here (wsod/params.safetensors of a run), or a published one that
bridge.convert has converted. --proposals: a store of any origin:

    a run's own              runs/NAME/proposals
    SAM, selective search    python -m bridge.export --help
    released pickles         python -m bridge.released_pickles read --data PATH --split S \\
                                 --pickle F.pkl --store STORE

--preset names the settings that the detector was trained with, --settings.* changes one of them;
settings that only test reads may be chosen freely: test_scales, test_mirrored, test_batch,
max_proposals, min_side, nms, max_detections, every_class.

Writes OUT/detections.json (COCO results), OUT/settings.json, and where the data set has boxes
OUT/metrics.json: AP50 by both rules of VOC, COCO AP, and CorLoc (ours and as the released script
counts it), which are printed too. AP wants a test split, CorLoc a training split. --voc-files
writes what the VOC server takes, for test sets without annotations as well. A detection that was
stopped goes on with the same command; a finished one is made anew, never reused.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tyro

from weaksam_jax.cli import entry_point
from weaksam_jax.data.datasets import open_tags, open_truth, split_names
from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.data.store import read_manifest
from weaksam_jax.errors import BadInput
from weaksam_jax.files import file_fingerprint, fingerprint, write_json
from weaksam_jax.wsod import recipes
from weaksam_jax.wsod.settings import WsodSettings


@dataclass(frozen=True)
class Detect:
    """Detects with a MIL detector and measures what it found."""

    weights: Path
    """The detector's parameters (.safetensors)."""
    data: str
    """The data set: VOCdevkit, COCO folder, images/ + tags.csv, or tfds:NAME."""
    proposals: Path
    """The proposal store; it must hold the split."""
    out: Path
    """Folder that is written."""
    split: str | None = None
    """The images to detect on [the data set's test split]."""
    preset: str = "mini"
    """Settings that the detector was trained with; a wrong name lists those there are."""
    clues: Path | None = None
    """Stored clues, for settings with clue_evidence or clue_power (light)."""
    backbone: Path | None = None
    """Weights of a frozen backbone (light: backbone/lite0.safetensors of a run)."""
    voc_files: Path | None = None
    """Folder for comp4_det_<split>_<class>.txt, the files of the VOC evaluation server."""
    settings: WsodSettings = tyro.MISSING
    """Every setting of the MIL stage; the defaults are the preset's."""


def main(argv: list[str] | None = None) -> None:
    detect(parse(argv))


def parse(argv: list[str] | None) -> Detect:
    """Reads the flags. The preset sets the defaults of `--settings.*`."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default=Detect.preset)
    name = first.parse_known_args(argv)[0].preset
    known = recipes.PRESETS
    if name not in known:
        raise BadInput("--preset", f"{name} is no preset", f"choose from {', '.join(known)}")
    missing = dict.fromkeys(("weights", "data", "proposals", "out"), tyro.MISSING)
    return tyro.cli(
        Detect,
        args=argv,
        prog="python -m experiments.detect",
        description=f"{__doc__}\nPresets: {', '.join(known)}.",
        default=Detect(**missing, preset=name, settings=known[name]()),
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )


def detect(options: Detect) -> list[dict]:
    """Detects, writes the results and prints the figures; returns COCO results."""
    from weaksam_jax.engine.checkpoint import load_params
    from weaksam_jax.wsod.detect import detect_wsod
    from weaksam_jax.wsod.journal import Journal

    options = replace(options, split=options.split or split_names(options.data)["test"])
    split = open_tags(options.data, options.split)
    params = load_params(options.weights)
    backbone = None if options.backbone is None else load_params(options.backbone)
    write_json(options.out / "settings.json", describe(options), indent=1)
    journal = Journal(options.out / "unfinished.jsonl", job_key(options, split))
    try:
        found = detect_wsod(
            params,
            split,
            options.proposals,
            options.settings,
            options.out,
            backbone,
            options.clues,
            journal,
        )
    except BadInput as error:
        if error.path != "weights":
            raise
        raise BadInput(options.weights, error.problem, error.cure) from error
    write_json(options.out / "detections.json", found)
    journal.path.unlink()
    report(options, split, found)
    return found


def describe(options: Detect) -> dict:
    """settings.json: every flag and setting as plain values, and what the weights were."""
    plain = {name: str(value) for name, value in vars(options).items() if value is not None}
    weights = file_fingerprint(options.weights)
    return {**plain, "weights_fingerprint": weights, "settings": asdict(options.settings)}


def job_key(options: Detect, split: TagSplit) -> str:
    """A hash of everything that decides the detections."""
    files = [path and file_fingerprint(path) for path in (options.weights, options.backbone)]
    stores = [path and str(path.resolve()) for path in (options.proposals, options.clues)]
    manifest = read_manifest(options.proposals, split.split)
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
    sys.exit(entry_point(main))
