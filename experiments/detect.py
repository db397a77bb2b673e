"""Detections of any detector file on any data set.

    python -m experiments.detect --weights runs/voc07/retrain/params.safetensors \\
        --data /path/to/VOCdevkit/VOC2007 --split test --out found
    python -m experiments.detect --weights runs/photos/wsod/params.safetensors --data PATH \\
        --proposals runs/photos/proposals --clues runs/photos/clues --out found

--weights: a detector trained here, or a published one that bridge.convert has made; the file says
what it is and how it was trained. Settings that only test reads may be changed: --test.nms,
--test.no-tta-flip and so on (--help-all shows those of this file). Detections of classes that the
data does not have are left out. --proposals, for MIL: a store of any origin, such as proposals/ of
a run, or of bridge.export.

Writes OUT/detections.json (COCO results), OUT/settings.json, and where the data set has boxes
OUT/metrics.json, whose figures are printed too: AP50 by both rules of VOC, COCO AP, and CorLoc
(ours and as the official script counts it), beside what the detector was trained on. AP wants a
test split, CorLoc a training split. A detection that was stopped goes on with the same command; a
finished one is made anew. Every device of the machine has a share of a batch, and several processes
(started as those of a training) share the images.
"""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from experiments.pipeline.commands import run
from experiments.pipeline.server_files import check_server_folder, write_server_files
from experiments.pipeline.stored import StoredDetector, find, open_stored
from weaksam_jax.data.datasets import open_tags, open_truth, split_names
from weaksam_jax.data.detections import DetectionTable, read_detections
from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.detectors import read_weights, stated_detector
from weaksam_jax.detectors.faster_rcnn.config import TestConfig
from weaksam_jax.engine.distributed import run_on_leader, start
from weaksam_jax.errors import printable
from weaksam_jax.files import file_fingerprint, write_json
from weaksam_jax.flags import parse, peek
from weaksam_jax.locks import locked
from weaksam_jax.outputs import OutFolder
from weaksam_jax.settings import to_plain
from weaksam_jax.supervision import ledger_row, read_stated

DETECTIONS, JOURNAL = "detections.json", "unfinished.jsonl"
WRITTEN = ("settings.json", DETECTIONS, "metrics.json", "features", JOURNAL)


@dataclass(frozen=True)
class Detect:
    """Detects with a stored detector and measures what it found."""

    weights: Path
    """The detector (.safetensors)."""
    data: str
    """The data set: VOCdevkit, COCO folder, images/ + tags.csv, or tfds:NAME."""
    out: OutFolder
    """Folder that is written."""
    proposals: Path | None = None
    """The proposal store of a MIL detector; it must hold the split."""
    split: str | None = None
    """The images to detect on [the data set's test split]."""
    clues: Path | None = None
    """Stored clues, for a config with clue_evidence, clue_power or tag_power (light)."""
    voc_files: OutFolder | None = None
    """Folder for comp4_det_<split>_<class>.txt, the files of the VOC evaluation server."""
    test: Any = field(default_factory=TestConfig)
    """Settings that only test reads; the defaults are those that the file states."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_options(sys.argv[1:] if argv is None else argv)
    start()
    detect(options)


def parse_options(argv: Sequence[str]) -> Detect:
    """Reads the flags; the defaults of `--test.*` are those that the file of --weights states."""
    weights, missing = (
        peek(argv, "weights"),
        dict.fromkeys(("weights", "data", "out"), tyro.MISSING),
    )
    test = stated_detector(read_weights(weights)).config.test if weights else TestConfig()
    own = [("test", type(test), field(default=test))]
    kind = make_dataclass("Detect", own, bases=(Detect,), frozen=True)
    return parse(kind, argv, __doc__, name="detect", default=kind(**missing))


def detect(options: Detect) -> None:
    """Detects, writes the results and prints the figures."""
    options = replace(options, split=options.split or split_names(options.data)["test"])
    split = open_tags(options.data, options.split)
    stores = {"proposals": options.proposals, "clues": options.clues}
    check_names(options, split)
    stored = open_stored(options.weights, options.test, **stores)
    with contextlib.ExitStack() as stack:

        def open_folder() -> None:
            stack.enter_context(locked(options.out, "detect", WRITTEN))
            write_json(options.out / "settings.json", describe(options, stored), indent=1)

        run_on_leader(open_folder)
        find(stored, split, out=options.out / DETECTIONS, journal=options.out / JOURNAL)
        run_on_leader(lambda: report(options, split))


def check_names(options: Detect, split: TagSplit) -> None:
    """Refuses images that the server's files cannot name, and others' files of their names, now and
    not after hours of detection."""
    if options.voc_files is not None:
        check_server_folder(split, options.voc_files)


def describe(options: Detect, stored: StoredDetector) -> dict:
    """settings.json: every flag, the detector's config, and what the weights were."""
    made_by = {"weights_fingerprint": file_fingerprint(options.weights)}
    made_by |= {"supervision": seen_by(options.weights)}
    return to_plain(options) | {"config": to_plain(stored.detector.config)} | made_by


def seen_by(weights: Path) -> dict[str, str]:
    """What the detector in a file says that it was trained on, as a row of a run's ledger."""
    return ledger_row(str(weights), read_stated(weights))


def report(options: Detect, split: TagSplit) -> None:
    """Writes metrics.json and the server's files, and prints the figures."""
    truth = open_truth(options.data, options.split)
    found = read_detections(options.out / DETECTIONS, truth or split)
    print(f"{len(found)} detections on {len(split.records)} images: {printable(options.out)}")
    if options.voc_files is not None:
        paths = write_server_files(found, split, options.voc_files)
        print(f"{len(paths)} files such as {printable(paths[0])}")
    if truth is None:
        print("the data set has no boxes of this split to compare with")
        return
    figures, seen = measure(found, truth), seen_by(options.weights)
    write_json(options.out / "metrics.json", {"supervision": seen, **figures}, indent=1)
    print(printable(f"the detector has seen: {seen['supervision']} ({seen['source']})"))
    print(table(figures))


def measure(found: DetectionTable, truth: TruthSplit) -> dict:
    """AP and CorLoc in percent by every convention, each with its classes where it has them."""
    from weaksam_jax.evaluate import coco_ap, corloc, voc_ap

    return {
        "voc07": voc_ap(found, truth, rule="07"),
        "voc12": voc_ap(found, truth, rule="12"),
        "coco": coco_ap(found, truth),
        "corloc": corloc(found, truth),
        "corloc_official": corloc(found, truth, convention="official"),
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
        "CorLoc, official": figures["corloc_official"]["corloc"],
    }
    lines = [f"  {name:24}  {value:6.2f}" for name, value in rows.items()]
    columns = [figures[name]["per_class"] for name in ("voc07", "voc12", "corloc")]
    lines.append(f"  {'class':24}  AP(11)  AP(area)  CorLoc")
    for name in columns[2]:  # every class that is there; difficult objects alone have no AP
        values = [f"{column[name]:6.2f}" if name in column else "     -" for column in columns]
        lines.append("  {:24}  {}    {}  {}".format(printable(name), *values))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run("detect"))
