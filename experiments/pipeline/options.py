"""The flags of the main jobs."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import tyro

from experiments.pipeline.config import PRESETS, RoadSettings
from weaksam_jax.errors import BadInput
from weaksam_jax.pgt import PgtSettings

STAGES = ("data", "clues", "proposals", "wsod", "pgt", "retrain", "masks", "report")
EXTRA_STAGES = ("retrain_without_drop",)


@dataclass(frozen=True)
class RoadOptions:
    """Flags of `experiments.voc07` and `experiments.custom`."""

    data: str = "auto"
    """mini (embedded), auto, tfds, or a folder: VOCdevkit, COCO, or images/ + tags.csv."""
    out: Path | None = None
    """The run directory; the same directory goes on where it stopped [runs/<data>-<preset>]."""
    stages: str | None = None
    """Only these, separated by commas (their inputs must be finished) [all]."""
    proposals: str = "sam"
    """sam, selective_search, or the folder of a proposal store made by bridge.export."""
    wsod: Literal["mist", "oicr"] = "mist"
    """How the MIL detector mines pseudo boxes."""
    retrain: Literal["faster_rcnn", "none"] = "faster_rcnn"
    """The detector that is retrained on the pseudo boxes."""
    segment: Literal["none"] = "none"
    """The instance segmenter trained on the pseudo masks (later issues)."""
    preset: Literal["auto", "mini", "light", "voc07", "voc12", "coco14"] = "auto"
    """mini: small networks for the mini set; light: photographs on a CPU; voc07, voc12, coco14: the
    paper's networks and schedules, for GPUs, from published weights [mini or light by the data]."""
    seed: int = 0
    settings: RoadSettings = field(default_factory=RoadSettings)
    """Every setting of every stage; the defaults are the preset's."""


def parse(
    argv: list[str] | None,
    description: str,
    prog: str,
    find_data: Callable[[], Path | None] | None = None,
) -> RoadOptions:
    """Reads the flags. The preset sets the defaults of `--settings.*`; what it says of pseudo boxes
    is for its own rule, so another `--settings.pgt.rule` starts from that rule's own values.

    find_data: asked for `--data auto` (the mini set when it finds nothing); None: data is required.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--data", default="auto")
    first.add_argument("--preset", default="auto")
    first.add_argument("--wsod", default="mist")
    first.add_argument("--settings.pgt.rule", dest="rule")
    known, _ = first.parse_known_args(argv)
    data = known.data
    if data == "auto" and find_data:
        data = str(find_data() or "mini")
    if data == "tfds":
        data = "tfds:voc/2007"
    preset = known.preset
    if preset == "auto":
        preset = "mini" if data == "mini" else "light"
    make = PRESETS.get(preset, lambda method: RoadSettings())
    settings = make("oicr" if known.wsod == "oicr" else "mist")
    if known.rule not in (None, settings.pgt.rule):
        settings = replace(settings, pgt=PgtSettings())
    options = tyro.cli(
        RoadOptions,
        args=argv,
        prog=prog,
        description=description,
        default=RoadOptions(settings=settings),
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    if data == "auto":
        raise BadInput("--data", "is missing", "give the folder of your photos, see --help")
    name = Path(data.replace(":", "-")).resolve().name
    out = options.out or Path("runs") / f"{name}-{preset}"
    settings = replace(options.settings, pgt=options.settings.pgt.resolved())
    return replace(options, data=data, out=out, preset=preset, settings=settings)
