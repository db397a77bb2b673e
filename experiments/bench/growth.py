"""How the time and memory of training steps grow: with proposals, pixels, devices and classes.

    python -m experiments.bench growth
    python -m experiments.bench growth --only pixels --detectors mil
    python -m experiments.bench growth --platform gpu

Every point is a process of its own: the step is compiled, called once and then timed (the median),
at the small sizes of a recipe that a CPU can take. proposals: those of an image, or the RoIs or
queries that a detector trains on; pixels: of an image; devices: simulated on the CPU whatever the
platform, one image each, all on the same cores, so that the time of a step should grow like their
number; classes: 20, 80, 320, 1000.

Writes OUT.json and OUT.md after every point and in the end a picture for each of the four,
OUT_<name>.png. "power": p where time or memory grow as the p-th power, between this point and the
one before; above 1 is faster than the number itself. "load": of the machine, before and after.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.bench.written import beside
from weaksam_jax.data.scales import PaddedSize
from weaksam_jax.detectors import DETECTORS
from weaksam_jax.errors import BadInput
from weaksam_jax.files import atomic_path, write_json, write_text
from weaksam_jax.flags import parse
from weaksam_jax.outputs import OutFile
from weaksam_jax.ranges import Batch, Count, Filled, Side

Axis = Literal["proposals", "pixels", "devices", "classes"]
AXES: tuple[Axis, ...] = ("proposals", "pixels", "devices", "classes")
# What stands for proposals in a detector that makes its own, by the part and name in its config.
OWN_PROPOSALS = ("loss.roi_batch", "loss.pre_nms", "loss.post_nms", "model.queries")
FIGURES = {
    "ms": "milliseconds per step",
    "program_mb": "memory of the program, MB",
    "peak_mb": "most memory held, MB",
}
# What `JAX_PLATFORMS` calls them.
PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


@dataclass(frozen=True)
class BenchGrowth:
    """Measures how training steps grow."""

    only: tuple[Axis, ...] = AXES
    """Which numbers are varied."""
    detectors: tuple[str, ...] = ()
    """Rows of the table of detectors [all]."""
    recipe: str = "mini"
    """A preset that each of them has."""
    proposals: Filled[Count] = (64, 128, 256, 512, 1024)
    """The first is that of the other measurements."""
    sizes: Filled[tuple[Side, Side]] = ((192, 288), (256, 384), (320, 480), (448, 672), (576, 864))
    """Padded (height, width); the first is that of the other measurements."""
    devices: Filled[Batch] = (1, 2, 4, 8)
    """Simulated devices, with an image each."""
    classes: Filled[Count] = (20, 80, 320, 1000)
    """The first is that of the other measurements."""
    platform: Literal["cpu", "gpu", "tpu"] = "cpu"
    """What computes, but for the simulated devices."""
    repeats: Count = 5
    """Timed steps."""
    out: OutFile = Path("runs/bench_growth.json")
    """Where the figures are written; the table and pictures lie beside it."""


@dataclass(frozen=True)
class Point:
    """A measurement: the number that is varied and its value, the worker's job, its devices (0:
    one of the platform)."""

    axis: Axis
    value: int
    job: dict[str, Any]
    devices: int = 0


def points_of(options: BenchGrowth, name: str) -> Iterator[Point]:
    """All measurements of a detector; `BadInput` for more proposals than it can have."""
    size, count = options.sizes[0], options.proposals[0]
    same = {"detector": name, "recipe": options.recipe, "repeats": options.repeats}
    same |= {"size": size, "images": 1, "classes": options.classes[0], "proposals": count}
    same["more"] = _own_proposals(name, options.recipe, count)
    for value in options.proposals if "proposals" in options.only else ():
        check_room(name, options.recipe, size, count=value)
        more = _own_proposals(name, options.recipe, value)
        yield Point("proposals", value, {**same, "proposals": value, "more": more})
    for size in options.sizes if "pixels" in options.only else ():
        yield Point("pixels", size[0] * size[1], {**same, "size": size})
    for value in options.devices if "devices" in options.only else ():
        yield Point("devices", value, {**same, "images": value}, devices=value)
    for value in options.classes if "classes" in options.only else ():
        yield Point("classes", value, {**same, "classes": value})


def _own_proposals(name: str, recipe: str, count: int) -> list[tuple[str, int]]:
    """The settings of a config that say how many proposals a step trains on."""
    kind = DETECTORS[name]
    config = kind.presets[recipe]()
    if kind.on_proposals:
        return [("data.max_proposals", count)]
    parts = [one.split(".") for one in OWN_PROPOSALS]
    return [(f"{p}.{f}", count) for p, f in parts if hasattr(getattr(config, p), f)]


def check_room(name: str, recipe: str, size: PaddedSize, *, count: int) -> None:
    """`BadInput` when a detector on the image alone has fewer places in it than proposals: one for
    each cell of its levels, which a DINO takes as queries, times the anchors of others."""
    if DETECTORS[name].on_proposals:
        return
    model = DETECTORS[name].presets[recipe]().model
    cells = sum(math.prod(-(-side // stride) for side in size) for stride in model.strides)
    places = cells * len(getattr(model, "anchor_sizes", ((),))[0] or (1,))
    places *= len(getattr(model, "anchor_ratios", (1,)))
    if count > places:
        problem = f"{count} are more than the {places} places of {name} at {size[0]} x {size[1]}"
        raise BadInput("--proposals", problem, "give fewer, or a larger first of --sizes")


def measured(point: Point, platform: str) -> dict[str, Any]:
    """The figures of a point, from a process of its own; {"failed": why} if it has none."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu" if point.devices else PLATFORMS[platform]}
    env |= {"JAX_NUM_CPU_DEVICES": str(point.devices or 1)}
    command = [sys.executable, "-m", "experiments.bench.growth_worker", json.dumps(point.job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"failed": f"exit status {done.returncode}: {last[:300]}"}
    return json.loads(done.stdout.splitlines()[-1])


def with_powers(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, in order, with "power": {figure: of its growth since the row before} of the same
    detector and number; none for the first, and for those that failed."""
    found, before = [], {}
    for row in rows:
        key = row["detector"], row["axis"]
        last, powers = before.get(key), {}
        if "failed" not in row:
            powers = {} if last is None else {name: power(last, row, name) for name in FIGURES}
            before[key] = row
        found.append({**row, "power": powers})
    return found


def power(before: dict[str, Any], row: dict[str, Any], name: str) -> float:
    """The exponent of a figure between two rows."""
    grown = math.log(row[name] / before[name])
    return round(grown / math.log(row["value"] / before["value"]), 2)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    heads = ("detector", "number", "value", "ms", "power", "plan, MB", "power", "peak, MB", "power")
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [row["detector"], row["axis"], row["value"], *_figures(row)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _figures(row: dict[str, Any]) -> list[Any]:
    if "failed" in row:
        return [row["failed"].replace("|", " "), *[""] * (2 * len(FIGURES) - 1)]
    shown = {**row, "ms": f"{row['ms']:.0f}"}
    return [one for name in FIGURES for one in (shown[name], row["power"].get(name, ""))]


def draw(rows: Sequence[dict[str, Any]], axis: Axis, path: Path) -> None:
    """Time and memory against one number, all axes logarithmic, with lines of power 1."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["axis"] == axis and "failed" not in row]
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for plot, (name, title) in zip(figure.subplots(1, 3), FIGURES.items(), strict=True):
        plot.set(xscale="log", yscale="log", xlabel=axis, ylabel=title)
        for detector in dict.fromkeys(row["detector"] for row in rows):
            own = [(row["value"], row[name]) for row in rows if row["detector"] == detector]
            values, figures = zip(*own, strict=True)
            (line,) = plot.plot(values, figures, "o-", label=detector)
            straight = [figures[0] * value / values[0] for value in values]
            plot.plot(values, straight, ":", color=line.get_color(), linewidth=1)
        if rows:
            plot.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def chosen(options: BenchGrowth) -> list[str]:
    """The detectors to measure; `BadInput` for one that is none, or lacks the recipe."""
    names = list(options.detectors or DETECTORS)
    for name in names:
        if name not in DETECTORS:
            raise BadInput("--detectors", f"{name} is none", f"choose from {', '.join(DETECTORS)}")
        presets = DETECTORS[name].presets
        if options.recipe not in presets:
            problem = f"{options.recipe} is none of {name}"
            raise BadInput("--recipe", problem, f"choose from {', '.join(presets)}")
    return names


def run(options: BenchGrowth) -> list[dict[str, Any]]:
    """Measures all points, one row each, and writes and prints every row when it is there."""
    points = [(name, point) for name in chosen(options) for point in points_of(options, name)]
    beside(options.out, ".md")
    rows: list[dict[str, Any]] = []
    for name, point in points:
        place = {"detector": name, "axis": point.axis, "value": point.value, "load": [load()]}
        place["platform"] = "cpu" if point.devices else options.platform
        rows.append(place | measured(point, options.platform))
        rows[-1]["load"].append(load())
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        write_rows(options.out, with_powers(rows))
    return with_powers(rows)


def load() -> float:
    """Processes that run or wait, the mean over the last minute."""
    return round(os.getloadavg()[0], 2)


def write_rows(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """As `out`, a JSON file, and as a table beside it."""
    write_json(out, {"cores": os.cpu_count(), "rows": rows}, indent=1)
    write_text(beside(out, ".md"), table(rows) + "\n")


def main(argv: Sequence[str]) -> None:
    options = parse(BenchGrowth, argv, __doc__, name="bench growth")
    rows = run(options)
    for axis in options.only:
        draw(rows, axis, beside(options.out, f"_{axis}.png"))
    print(table(rows))
    if bad := [row for row in rows if "failed" in row]:
        first = f"{bad[0]['detector']}, {bad[0]['axis']} {bad[0]['value']}: {bad[0]['failed']}"
        raise BadInput("bench growth", f"{len(bad)} points failed", f"see {first}")
