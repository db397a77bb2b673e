"""How many padded sizes the published recipes have, and how many of their pixels are padding.

    python -m experiments.bench padding
    python -m experiments.bench padding --data /path/to/VOCdevkit/VOC2007 --split trainval
    python -m experiments.bench padding --data PATH --split trainval --proposals STORE

A padded size is one compiled program. Without --data the images are 2000 photographs of VOC2007,
and a mix of the sizes that COCO's often have, in shares that are assumed. With --proposals also how
many of the places of proposals are padding. Nothing is compiled.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weaksam_jax.data.datasets import open_tags, split_names
from weaksam_jax.data.records import TagRecord, TagSplit
from weaksam_jax.data.scales import Scale, bucket_of, shown_at
from weaksam_jax.data.store import read_proposals
from weaksam_jax.detectors import DETECTORS
from weaksam_jax.detectors.mil.samples import padded_count
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_json
from weaksam_jax.flags import parse
from weaksam_jax.outputs import OutFile

DATA = ("voc07", "voc12", "coco14", "coco17")  # published recipes begin with one of these
DRAWS = 32  # factors of an image's size that stand for all
Counts = Mapping[tuple[int, int], int]  # (width, height) -> number of images


@dataclass(frozen=True)
class BenchPadding:
    """Measures the padding of the published recipes."""

    data: str | None = None
    """The data set whose images are counted [built-in lists of sizes]."""
    split: str | None = None
    """Of it [its training split]."""
    proposals: Path | None = None
    """A proposal store of that split."""
    json: OutFile = Path("runs/bench_padding.json")
    """Where the table is written as JSON."""


def voc2007() -> Counts:
    """2000 photographs of VOC2007: the 20 most frequent sizes, then those of all others with their
    aspect rounded."""
    landscape = {1.0: 6, 1.1: 18, 1.2: 29, 1.3: 64, 1.4: 51, 1.5: 52, 1.6: 29, 1.7: 11, 1.8: 6,
                 2.0: 16, 2.5: 9, 3.2: 3}  # fmt: skip
    portrait = {1.0: 4, 1.1: 10, 1.2: 14, 1.3: 17, 1.4: 21, 1.5: 23, 1.6: 4, 1.7: 3, 1.8: 4,
                2.0: 3, 2.5: 2}  # fmt: skip
    frequent = {
        (500, 375): 830, (500, 333): 306, (375, 500): 164, (333, 500): 62, (500, 332): 54,
        (500, 334): 41, (500, 335): 22, (500, 374): 18, (500, 331): 15, (332, 500): 13,
        (500, 357): 13, (334, 500): 11, (335, 500): 10, (500, 281): 8, (500, 329): 7,
        (500, 500): 6, (480, 360): 6, (500, 322): 5, (374, 500): 5, (500, 338): 5,
    }  # fmt: skip
    counts = Counter(frequent)
    counts.update({(500, round(500 / aspect) + 1): n for aspect, n in landscape.items()})
    counts.update({(round(500 / aspect) + 1, 500): n for aspect, n in portrait.items()})
    return counts


def coco_like() -> Counts:
    """100 images of sizes that COCO's photographs often have; how often is assumed."""
    return {
        (640, 480): 40, (640, 427): 20, (480, 640): 14, (427, 640): 8, (640, 426): 4, (500, 375): 3,
        (640, 360): 2, (640, 640): 2, (375, 500): 1, (640, 320): 1, (640, 400): 1, (360, 640): 1,
        (512, 640): 1, (640, 512): 1, (612, 612): 1,
    }  # fmt: skip


def padding_of(counts: Counts, scales: Sequence[Scale], jitter: Sequence[float]) -> dict[str, Any]:
    """A row: {"sizes": padded sizes that some image is shown in, "padding": share of all pixels,
    "megapixels": of a padded image}, every image once at every scale.

    jitter: range of a factor on the size of an image, drawn evenly (what is beyond the padded size
    is cut off).
    """
    low, high = jitter
    factors = low + (high - low) * (np.arange(DRAWS) + 0.5) / DRAWS
    sizes, whole, used = set(), 0.0, 0.0
    for (width, height), count in counts.items():
        bucket = bucket_of(TagRecord(0, "", Path(), width=width, height=height, tags=()), scales)
        for scale in scales:
            shown = shown_at(scale, bucket)
            sizes.add(shown.padded)
            whole += count * shown.padded[0] * shown.padded[1]
            drawn = factors[:, None] * shown.fit(height, width) * np.asarray([height, width])
            used += count * np.minimum(drawn, shown.padded).prod(1).mean()
    images = sum(counts.values()) * len(scales)
    found = {"sizes": len(sizes), "padding": round(1 - float(used) / whole, 4)}
    return found | {"megapixels": round(whole / images / 1e6, 4)}


def recipes() -> Iterator[tuple[str, str, Sequence[Scale], Sequence[float]]]:
    """(name, "train" or "predict", scales, jitter) of every published recipe."""
    for kind, detector in DETECTORS.items():
        for name, preset in detector.presets.items():
            if name.startswith(DATA):
                config = preset()
                train = config.data.scales
                yield f"{kind} {name}", "train", train, config.data.augment.scale
                yield f"{kind} {name}", "predict", config.test.tta_scales or train, (1.0, 1.0)


def rows_of(images: str, counts: Counts) -> list[dict[str, Any]]:
    """A row for each recipe and work."""
    return [
        {"images": images, "recipe": name, "work": work, **padding_of(counts, scales, jitter)}
        for name, work, scales, jitter in recipes()
    ]


def places_of(counts: Iterable[int]) -> dict[str, Any]:
    """What is padding of the places of proposals, from the number of each image's."""
    counts = np.asarray(list(counts))
    places = padded_count(int(counts.max()))
    share = 1 - float(counts.mean()) / places
    known = {"mean": round(float(counts.mean()), 1), "most": int(counts.max())}
    return known | {"places": places, "padding": round(share, 4)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| images | recipe | work | padded sizes | padding | megapixels |", "|---" * 6 + "|"]
    lines += [
        f"| {r['images']} | {r['recipe']} | {r['work']} | {r['sizes']} "
        f"| {100 * r['padding']:.1f} % | {r['megapixels']:.3f} |"
        for r in rows
    ]
    return "\n".join(lines)


def _split(options: BenchPadding) -> TagSplit | None:
    if options.data is None:
        if options.proposals is not None:
            raise BadInput("--proposals", "belongs to a data set", "name it with --data")
        return None
    return open_tags(options.data, options.split or split_names(options.data)["train"])


def main(argv: Sequence[str]) -> None:
    options = parse(BenchPadding, argv, __doc__, name="bench padding")
    split = _split(options)
    if split is None:
        rows = rows_of("VOC2007", voc2007()) + rows_of("as in COCO", coco_like())
    else:
        counts = Counter((one.width, one.height) for one in split.records)
        rows = rows_of(f"{split.dataset}/{split.split}", counts)
    print(table(rows))
    found: dict[str, Any] = {"rows": rows}
    if options.proposals is not None:
        stored = (read_proposals(options.proposals, split.split, one) for one in split.records)
        found["proposals"] = places_of(map(len, stored))
        print("proposals: {mean} per image, {most} at most, in {places} places".format(
            **found["proposals"]))  # fmt: skip
    write_json(options.json, found, indent=1)
