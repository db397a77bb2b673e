"""How the time and memory of training steps grow: with proposals, pixels, devices and classes.

    python -m experiments.bench growth
    python -m experiments.bench growth --only pixels --detectors mil

Every point is a process of its own: the step is compiled, called once and then timed (the median),
at the small sizes of a recipe that a CPU can take. proposals: those of an image, or the RoIs or
queries that a detector trains on; pixels: of an image; devices: simulated, one image each, all on
the same cores, so that the time of a step should grow like their number; classes: 20, 80, 1000.

Writes OUT.json, OUT.md and a picture for each of the four, OUT_<name>.png. "power": p where time or
memory grow as the p-th power, between this point and the one before; above 1 is faster than the
number itself.
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

from weaksam_jax.detectors import DETECTORS
from weaksam_jax.errors import BadInput
from weaksam_jax.files import atomic_path, write_json, write_text
from weaksam_jax.flags import parse
from weaksam_jax.outputs import OutFile
from weaksam_jax.ranges import Batch, Count, Filled, Side

Axis = Literal["proposals", "pixels", "devices", "classes"]
AXES: tuple[Axis, ...] = ("proposals", "pixels", "devices", "classes")
# What stands for proposals in a detector that makes its own, by the part and name in its config.
OWN_PROPOSALS = ("loss.roi_batch", "model.queries")
FIGURES = ("ms", "program_mb", "peak_mb")


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
    sizes: Filled[tuple[Side, Side]] = ((128, 192), (192, 288), (256, 384), (384, 576), (512, 768))
    """Padded (height, width); the first is that of the other measurements."""
    devices: Filled[Batch] = (1, 2, 4, 8)
    """Simulated devices, with an image each."""
    classes: Filled[Count] = (20, 80, 320, 1000)
    """The first is that of the other measurements."""
    repeats: Count = 5
    """Timed steps."""
    out: OutFile = Path("runs/bench_growth.json")
    """Where the figures are written; the table and pictures lie beside it."""


@dataclass(frozen=True)
class Point:
    """A measurement: the number that is varied and its value, the worker's job, its devices."""

    axis: Axis
    value: int
    job: dict[str, Any]
    devices: int = 1


def points_of(options: BenchGrowth, name: str) -> Iterator[Point]:
    """All measurements of a detector."""
    size, count = options.sizes[0], options.proposals[0]
    same = {"detector": name, "recipe": options.recipe, "repeats": options.repeats}
    same |= {"size": size, "images": 1, "classes": options.classes[0], "proposals": count}
    same["more"] = _own_proposals(name, options.recipe, count)
    for value in options.proposals if "proposals" in options.only else ():
        more = _own_proposals(name, options.recipe, value)
        yield Point("proposals", value, {**same, "proposals": value, "more": more})
    for size in options.sizes if "pixels" in options.only else ():
        yield Point("pixels", size[0] * size[1], {**same, "size": size})
    for value in options.devices if "devices" in options.only else ():
        yield Point("devices", value, {**same, "images": value}, devices=value)
    for value in options.classes if "classes" in options.only else ():
        yield Point("classes", value, {**same, "classes": value})


def _own_proposals(name: str, recipe: str, count: int) -> list[tuple[str, int]]:
    """The setting of a config that says how many proposals a step trains on."""
    kind = DETECTORS[name]
    config = kind.presets[recipe]()
    if kind.on_proposals:
        return [("data.max_proposals", count)]
    parts = [one.split(".") for one in OWN_PROPOSALS]
    return [(f"{p}.{f}", count) for p, f in parts if hasattr(getattr(config, p), f)]


def measured(point: Point) -> dict[str, Any]:
    """The figures of a point, from a process of its own."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(point.devices)}
    command = [sys.executable, "-m", "experiments.bench.growth_worker", json.dumps(point.job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def with_powers(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, in order, with "power": {figure: of its growth since the row before} of the same
    detector and number; none for the first."""
    found, before = [], {}
    for row in rows:
        key = row["detector"], row["axis"]
        last = before.get(key)
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
    heads = ("detector", "number", "value", "ms", "power", "plan, MB", "power", "peak, MB")
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        powers = row["power"]
        cells = [row["detector"], row["axis"], row["value"], f"{row['ms']:.0f}"]
        cells += [powers.get("ms", ""), row["program_mb"], powers.get("program_mb", "")]
        lines.append("| " + " | ".join(map(str, [*cells, row["peak_mb"]])) + " |")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], axis: Axis, path: Path) -> None:
    """Time and memory against one number, both axes logarithmic, with lines of power 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    titles = {"ms": "milliseconds per step", "program_mb": "memory of the program, MB"}
    for plot, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for detector in dict.fromkeys(row["detector"] for row in rows):
            own = [row for row in rows if (row["detector"], row["axis"]) == (detector, axis)]
            values = [row["value"] for row in own]
            (line,) = plot.plot(values, [row[name] for row in own], "o-", label=detector)
            start = own[0]
            straight = [start[name] * value / start["value"] for value in values]
            plot.plot(values, straight, ":", color=line.get_color(), linewidth=1)
        plot.set(xscale="log", yscale="log", xlabel=axis, ylabel=title)
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
    """Measures all points, one row each, and prints every row when it is there."""
    rows = []
    for name in chosen(options):
        for point in points_of(options, name):
            place = {"detector": name, "axis": point.axis, "value": point.value}
            rows.append(place | measured(point))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return with_powers(rows)


def main(argv: Sequence[str]) -> None:
    options = parse(BenchGrowth, argv, __doc__, name="bench growth")
    rows, out = run(options), options.out
    load = [round(one, 2) for one in os.getloadavg()]
    write_json(out, {"load_at_the_end": load, "cores": os.cpu_count(), "rows": rows}, indent=1)
    write_text(out.with_suffix(".md"), table(rows) + "\n")
    for axis in options.only:
        draw(rows, axis, out.with_name(f"{out.stem}_{axis}.png"))
    print(table(rows))
