"""Tables and pictures of proposals: where boxes come from, what they cost, what they find.

    python -m experiments.paper.proposals --table 4 --data VOC2007 --clues lite_cam.safetensors \\
        --sam sam_mini_lite --images 40
    python -m experiments.paper.proposals --table 8 --data VOC2007 --stores weaktr=A mctformer=B
    python -m experiments.paper.proposals --figure photos --data VOC2007 \\
        --stores ours=runs/lite/proposals

Tables and the figure are numbered as in the paper. --table 4: every source of prompts alone and
added one to the other (grid, + fine, + coarse, + cross), beside selective search. --table 6: number
of boxes and seconds of generation. --table 8: several clue networks. --figure photos: proposals in
the colour of their source, and prompt points. --figure similarity: Fig. 4, cosine similarities of
the RoI features of 200 proposals of every source.

What is not given as a store (--stores) is made by bridge.export, without masks, below --out, and
resumes there. Every row is what SAM prompted by the sources of that row alone gives, from the
decoded masks that were kept; so it is for a given store that was exported with --keep-decoded. Of
another one the rows are parts of one whole: settings that act on all sources together (least side,
near duplicates, most boxes) were applied before.

Recall counts an object as found when a box has that IoU with it, one box per object. Difficult
objects count, as in the paper's tables and in `experiments.evaluate --metric recall`; with
--no-difficult they do not.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from bridge.proposals.presets import PRESETS, PresetName, preset_of_sam
from experiments.paper import proposal_stores
from experiments.paper.proposal_stores import Stored
from experiments.pipeline import metrics as measure
from experiments.pipeline.commands import run
from weaksam_jax.data.datasets import is_training, open_tags, open_truth, split_names
from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.data.store import SOURCES
from weaksam_jax.errors import BadInput, printable
from weaksam_jax.evaluate import proposal_recall
from weaksam_jax.files import write_json
from weaksam_jax.flags import parse
from weaksam_jax.locks import locked
from weaksam_jax.outputs import OutFolder
from weaksam_jax.ranges import Count

# The order in which the paper's Table 4 adds them.
WRITTEN = ("stores", "photos", "similarity.png", "similarity.json")
WRITTEN += ("table4.json", "table6.json", "table8.json")
ORDER = ("grid", "fine", "coarse", "cross")


@dataclass(frozen=True)
class ProposalsOptions:
    """What to show, and of what."""

    data: Path
    """The data set: VOCdevkit or COCO folder (with tags alone there is no recall)."""
    table: Literal[4, 6, 8] | None = None
    """4: sources alone and added; 6: boxes and seconds; 8: several clue networks."""
    figure: Literal["photos", "similarity"] | None = None
    """photos: proposals and points over photos; similarity: RoI features by source (Fig. 4)."""
    split: str | None = None
    """Name of the split [the training split]."""
    images: Count | None = None
    """So many images, evenly spread over the split's list [all; for figure photos 4]."""
    stores: tuple[str, ...] = ()
    """Finished proposal stores, each DIR or NAME=DIR."""
    clues: tuple[str, ...] = ()
    """Weights of clue networks to export with, each FILE or NAME=FILE; none: the grid alone."""
    sam: str = "sam_mini"
    """What to export with: sam_mini, sam_mini_lite or a published checkpoint."""
    preset: PresetName | Literal["auto"] = "auto"
    """Settings of the export [those meant for the SAM]."""
    selective_search: bool = True
    """Selective search as a baseline."""
    difficult: bool = True
    """Count difficult objects, as the paper does."""
    out: OutFolder = Path("runs/proposals")
    """Where stores, tables (table4.json, ...) and pictures are written."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(ProposalsOptions, argv, __doc__, name="paper.proposals")
    if options.table is None and options.figure is None:
        raise BadInput("--table", "is missing", "give --table 4, 6 or 8, or --figure")
    images = 4 if options.figure == "photos" and options.images is None else options.images
    tags = open_tags(options.data, _split_name(options), PRESETS[_preset(options)].difficult_tags)
    split = chosen(tags, images)
    with locked(options.out, "paper", WRITTEN):
        stores = gather(options, split)
        if options.table is not None:
            write_table(options, tabulate(options, split, stores))
        if options.figure is not None:
            from experiments.paper import proposal_figures

            draw = getattr(proposal_figures, options.figure)
            print(draw(split, stores, options.out), file=sys.stderr)


def write_table(options: ProposalsOptions, result: dict) -> None:
    """Writes and prints a table."""
    path = options.out / f"table{options.table}.json"
    write_json(path, result, indent=1)
    print(text(result))
    print(f"written to {printable(path)}", file=sys.stderr)


def _split_name(options: ProposalsOptions) -> str:
    return options.split or split_names(options.data)["train"]


def _preset(options: ProposalsOptions) -> PresetName:
    return preset_of_sam(options.sam) if options.preset == "auto" else options.preset


def chosen(split: TagSplit, images: int | None) -> TagSplit:
    """The split with at most so many of its images, evenly spread over its list."""
    if images is not None and images < 1:
        raise BadInput("--images", f"is {images}", "give at least 1")
    count = len(split.records)
    if images is None or images >= count:
        return split
    index = np.linspace(0, count, images, endpoint=False).astype(int)
    return replace(split, records=tuple(split.records[i] for i in index))


def gather(options: ProposalsOptions, split: TagSplit) -> list[Stored]:
    """Everything that the table or figure shows: baseline, given stores, what had to be made."""
    found = [
        proposal_stores.given(name, Path(place), split) for name, place in named(options.stores)
    ]
    if options.table == 8 and not (options.stores or options.clues):
        raise BadInput("--table 8", "has no clue network", "give --clues or --stores, see --help")
    if not found or options.clues:
        networks = [(name, Path(place)) for name, place in named(options.clues)]
        networks = networks or [("grid alone", None)]
        labels = "tags" if is_training(split.split) else "predicted"
        where, preset = options.out / "stores", _preset(options)
        found += proposal_stores.made(
            split, networks, options.sam, preset=preset, labels=labels, root=where
        )
    if options.selective_search and options.table in (4, 6):
        found.insert(0, proposal_stores.searched(split, options.out / "stores"))
    return found


def named(texts: Sequence[str]) -> list[tuple[str, str]]:
    """(name, place) of every NAME=PLACE; a place alone is named by its last part."""
    pairs = [one.split("=", 1) if "=" in one else (Path(one).stem, one) for one in texts]
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(twice, "is the name of two stores or networks", "give NAME=PATH to each")
    return [(name, place) for name, place in pairs]


# Tables


def tabulate(options: ProposalsOptions, split: TagSplit, stores: Sequence[Stored]) -> dict:
    """The table as plain values: its rows, and what they were measured on."""
    truth = truth_of(options.data, split)
    rows = []
    for stored in stores:
        groups = [("", SOURCES)]
        if options.table == 4:
            groups = groups_of(stored)
        elif options.table == 8 and stored is stores[0] and "grid" in stored.sources:
            groups = [("grid alone", ("grid",)), ("", SOURCES)]
        for name, sources in groups:
            row = measured(stored, name, sources, truth=truth, difficult=options.difficult)
            if options.table == 6 and stored.seconds is not None:
                row["seconds_per_image"] = stored.seconds
            rows.append(row)
    return {
        "table": options.table,
        "dataset": split.dataset,
        "split": split.split,
        "images": len(split.records),
        "difficult": options.difficult,
        "stores": {stored.name: stored.made_with for stored in stores},
        "rows": rows,
    }


def truth_of(data: Path, split: TagSplit) -> TruthSplit | None:
    """The truth of the chosen images; None where there are tags alone."""
    truth = open_truth(data, split.split)
    if truth is None:
        return None
    by_id = {record.image_id: record for record in truth.records}
    return replace(truth, records=tuple(by_id[record.image_id] for record in split.records))


def groups_of(stored: Stored) -> list[tuple[str, tuple[str, ...]]]:
    """(name, sources) of Table 4's rows: each source that there is alone, then one added a row."""
    if len(stored.sources) < 2:
        return [("", SOURCES)]
    there = [name for name in ORDER if name in stored.sources]
    others = [name for name in stored.sources if name not in ORDER]
    groups = [(name, (name,)) for name in there + others]
    added = [" + ".join(there[:count]) for count in range(2, len(there) + 1)]
    return groups + [(name, tuple(name.split(" + "))) for name in added]


def measured(
    stored: Stored, name: str, sources: Sequence[str], truth: TruthSplit | None, difficult: bool
) -> dict:
    """One row: boxes per image, and recall where there is a truth."""
    boxes = stored.boxes(sources)
    row = {"store": stored.name, "name": name or stored.name}
    row["per_image"] = float(np.mean([len(own) for own in boxes]))
    if truth is not None:
        row["recall"] = proposal_recall(boxes, truth, difficult=difficult)
    return row


def text(result: dict) -> str:
    """The table in Markdown; recall in percent."""
    rows = result["rows"]
    several = len({row["store"] for row in rows}) > 1
    recalls = list(next((row["recall"] for row in rows if "recall" in row), {}))
    timed = any("seconds_per_image" in row for row in rows)
    heads = ["proposals", "boxes per image", *(f"recall {one}" for one in recalls)]
    heads += ["seconds per image"] * timed
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        same = row["name"] == row["store"] or not several
        cells = [row["name"] if same else f"{row['store']}: {row['name']}"]
        cells.append(f"{row['per_image']:.1f}")
        cells += [f"{100 * row['recall'][one]:.1f}" for one in recalls]
        if timed:
            seconds = row.get("seconds_per_image")
            cells.append("–" if seconds is None else f"{seconds:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    end = f"{result['dataset']}/{result['split']}, {result['images']} images"
    return "\n".join([*lines, f"{end}, {measure.counted(result['difficult'])}"])


if __name__ == "__main__":
    sys.exit(run("paper.proposals"))
