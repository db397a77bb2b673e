"""Every detector's programs compiled for TPUs that are not there.

    python -m experiments.bench tpu --only "mil voc07_mist" --topology v5e:2x2

Training steps and detections of the published recipes are compiled ahead of time from shapes alone,
for all chips of a topology, by the TPU's own compiler. It needs `libtpu` of jax's own version (the
extra `tpu`) and no TPU; a program takes minutes. Figures are per chip:

- GiB: arguments, results and temporary memory as the compiler planned them, beside what a chip has;
- roofline: images per second if the slower of arithmetic (flops at the bfloat16 peak) and memory
  (bytes at the bandwidth) were all there is; loops count once in it, as in XLA's cost analysis;
- cycles: images per second by the compiler's own estimates of the instructions, loops times their
  turns; sorts, large gathers and scatters are not in it. Where only the data end a loop: none in
  RoIPool, whose loop is for boxes beyond the image, else 10, such as the rounds of an NMS.

`--effort -1` compiles several times as fast; memory, flops and loops hold, cycles are too many.
"""

import importlib.metadata
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from experiments.bench import programs
from experiments.bench.hlo import Reading, read
from experiments.bench.programs import Case, Program, planned_bytes, program_of
from experiments.bench.written import beside
from weaksam_jax.detectors import DETECTORS
from weaksam_jax.engine.mesh import AXIS
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_json, write_text
from weaksam_jax.flags import parse
from weaksam_jax.outputs import OutFile
from weaksam_jax.ranges import Count, Filled, Side


@dataclass(frozen=True)
class Chip:
    """A TPU chip: TFLOP/s in bfloat16, GB/s and GiB of memory, MHz (Google's figures)."""

    tflops: float
    bandwidth: float
    memory: float
    clock: float


CHIPS = {
    "v5e": Chip(197, 819, 16, clock=1500),
    "v6e": Chip(918, 1640, 32, clock=1750),
    "v5p": Chip(459, 2765, 95, clock=1750),
}
TURNS = 10  # of loops that the data end
HEAVIEST = 12  # operations listed in the JSON file


@dataclass(frozen=True)
class BenchTpu:
    """Compiles the programs of all detectors for TPUs."""

    only: str | None = None
    """Programs whose name has all these words, such as "mil train bfloat16"."""
    topology: Filled[str] = ("v5e:2x2", "v6e:2x2")
    """Chips that a program is compiled for, all of them at once."""
    recipe: Filled[str] | None = None
    """Presets of the detectors [those of VOC07, or of the first data set that has some]."""
    size: Filled[tuple[Side, Side]] | None = None
    """Padded (height, width) [the smallest and the largest of the recipe]."""
    precision: Filled[str] = ("float32", "bfloat16")
    """Of the layers, as in the detectors' configs."""
    proposals: Count = 256
    """Per image, of detectors on proposals."""
    effort: float = 0.0
    """Of the compiler, from -1 to 1."""
    out: OutFile = Path("runs/bench_tpu.json")
    """Where the figures are written; a table, .md, lies beside it."""


def check_libtpu() -> None:
    """Raises `BadInput` unless libtpu is installed in the version that jax asks for."""
    asked = [one for one in importlib.metadata.requires("jax") or () if one.startswith("libtpu")]
    version = asked[0].partition(";")[0].removeprefix("libtpu").strip(" =*.") if asked else "?"
    hint = f'pip install "libtpu=={version}.*" (the extra tpu)'
    try:
        found = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise BadInput("bench tpu", "libtpu is not installed", hint) from None
    if not f"{found}.".startswith(f"{version}."):
        raise BadInput(
            "bench tpu", f"libtpu {found} does not belong to jax {jax.__version__}", hint
        )


def without_tpu() -> None:
    """Before jax looks for devices: no search for a TPU, which takes half a minute."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    jax.config.update("jax_platforms", "cpu")


def mesh_of(topology: str) -> Mesh:
    """A mesh over the chips of a topology; `BadInput` when libtpu does not know it."""
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # of several kinds, by version
        reason = str(error).strip().splitlines()[0][:200]
        raise BadInput("--topology", f"{topology} is none ({reason})", "try v5e:2x2") from error
    return Mesh(np.array(found.devices), (AXIS,), axis_types=(AxisType.Auto,))


def cases_of(options: BenchTpu) -> list[Case]:
    """The programs that the options name; `BadInput` when there is none."""
    words = (options.only or "").split()
    every = list(_every_case(options))
    if not (chosen := [one for one in every if set(words) <= set(one.name.split())]):
        names = sorted({" ".join(one.name.split()[:3]) for one in every})
        hint = f"choose from {', '.join(names)}"
        raise BadInput("--only", f"{options.only} names no program", hint)
    return chosen


def _every_case(options: BenchTpu) -> Iterator[Case]:
    for name, kind in DETECTORS.items():
        for recipe in options.recipe or programs.published(kind.presets):
            if recipe not in kind.presets:
                continue
            none = {"size": (0, 0), "precision": ""}
            first = Case(name, recipe, "train", proposals=options.proposals, **none)
            for size in options.size or programs.end_sizes(first):
                for precision in options.precision:
                    more = {"size": size, "proposals": options.proposals, "precision": precision}
                    yield Case(name, recipe, "train", **more)
                    yield Case(name, recipe, "predict", **more)


def compile_case(case: Case, topology: str) -> dict[str, Any]:
    """A row: what is said of one program on one topology."""
    mesh = mesh_of(topology)
    program = program_of(case, mesh)
    row = {**asdict(case), "name": case.name, "topology": topology, "chips": program.devices}
    start = time.monotonic()
    lowered = program.lower()
    row["lower_s"] = round(time.monotonic() - start, 1)
    start = time.monotonic()
    try:
        compiled, problem = lowered.compile(), None
    except jax.errors.JaxRuntimeError as error:  # such as more memory than a chip has
        compiled, problem = None, " ".join(str(error).split())[:400]
    row |= {"compiles": compiled is not None, "compile_s": round(time.monotonic() - start, 1)}
    row["chip_gib"] = chip_of(topology).memory
    if compiled is None:
        return row | {"problem": problem}
    return row | figures(compiled, program, chip_of(topology))


def chip_of(topology: str) -> Chip:
    """What is known of the chips of a topology."""
    name = topology.split(":")[0]
    if name not in CHIPS:
        raise BadInput("--topology", f"{topology} is unknown", f"chips: {', '.join(CHIPS)}")
    return CHIPS[name]


def figures(compiled: Any, program: Program, chip: Chip) -> dict[str, Any]:
    """Of a compiled program, per chip."""
    cost, images = compiled.cost_analysis(), program.images / program.devices
    found = read(compiled.as_text(), turns)
    arithmetic = cost["flops"] / chip.tflops / 1e12
    seconds = {
        "roofline": max(arithmetic, cost["bytes accessed"] / chip.bandwidth / 1e9),
        "cycles": sum(found.cycles.values()) / chip.clock / 1e6,
    }
    return {
        **memory_gib(compiled.memory_analysis()),
        "tflop": round(cost["flops"] / 1e12, 4),
        "gbytes": round(cost["bytes accessed"] / 1e9, 2),
        **{f"{name}_s": round(value, 5) for name, value in seconds.items()},
        **{f"{k}_images_per_s": round(images / v, 2) for k, v in seconds.items() if v},
        **_consists_of(found, chip),
    }


def turns(source: str) -> int:
    """Of a loop in these functions that only the data end."""
    return 0 if "outputs" in source else TURNS  # RoIPool's, for bins that no two windows cover


def memory_gib(plan: Any) -> dict[str, float]:
    """What the compiler has planned."""
    return {
        "memory_gib": round(planned_bytes(plan) / 2**30, 2),
        "temporary_gib": round(plan.temp_size_in_bytes / 2**30, 2),
    }


def _consists_of(found: Reading, chip: Chip) -> dict[str, Any]:
    heaviest = found.cycles.most_common(HEAVIEST)
    return {
        "collectives": found.collectives["n"],
        "collectives_mib": round(found.collectives["bytes"] / 2**20, 1),
        "host_calls": found.host_calls,
        "loops": [asdict(one) for one in found.loops],
        "sorts": found.operations["sort"],
        "heaviest": [[round(value / chip.clock / 1e3, 2), *key] for key, value in heaviest],
    }


COLUMNS = {
    "program": lambda r: r["name"],
    "chip": lambda r: r["topology"],
    "compiles, s": lambda r: f"{r['compile_s']:.0f}" if r["compiles"] else "no",
    "GiB of": lambda r: f"{_shown(r, 'memory_gib')} of {r['chip_gib']}",
    "TFLOP": lambda r: _shown(r, "tflop"),
    "GB": lambda r: _shown(r, "gbytes"),
    "collectives, MiB": lambda r: f"{_shown(r, 'collectives')}, {_shown(r, 'collectives_mib')}",
    "roofline img/s": lambda r: _shown(r, "roofline_images_per_s"),
    "cycles img/s": lambda r: _shown(r, "cycles_images_per_s"),
    "host calls": lambda r: str(len(r["host_calls"])) if r["compiles"] else "-",
    "heaviest, ms": lambda r: _heaviest(r) if r["compiles"] else r["problem"][:120],
}


def _shown(row: dict, name: str) -> str:
    return f"{row[name]:g}" if name in row else "-"


def _heaviest(row: dict, count: int = 2) -> str:
    """Its heaviest operations by the functions they are in."""
    short = [(ms, _place(source) or label) for ms, _, label, source in row["heaviest"][:count]]
    return "; ".join(f"{place} {ms:.1f}" for ms, place in short)


def _place(source: str) -> str:
    """The last names of `jit(step)/.../classify/while/body/gather` that tell something."""
    parts = [one for one in re.split(r"[/()]+", source) if one and not _NOT_TELLING.fullmatch(one)]
    return "/".join(parts[-3:]).replace("|", " ")


_NOT_TELLING = re.compile(
    r"jit|body|closed_call|shard_map|vmap|jvp|transpose|checkpoint|cond|branch_\d+_fun"
)


def table(rows: Sequence[dict]) -> str:
    """The rows in Markdown."""
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    lines = [f"| {' | '.join(shown(row) for shown in COLUMNS.values())} |\n" for row in rows]
    return head + "".join(lines)


def main(argv: Sequence[str]) -> None:
    options = parse(BenchTpu, argv, __doc__, name="bench tpu")
    beside(options.out, ".md")
    check_libtpu()
    without_tpu()
    jax.config.update("jax_exec_time_optimization_effort", options.effort)
    rows: list[dict] = []
    for case in cases_of(options):
        for topology in options.topology:
            print(f"compiling {case.name} for {topology} ...", file=sys.stderr, flush=True)
            rows.append(compile_case(case, topology))
            write_rows(options.out, rows)  # what is done is kept
    print(table(rows))
    print(f"written to {options.out} and {beside(options.out, '.md')}", file=sys.stderr)


def write_rows(out: Path, rows: Sequence[dict]) -> None:
    """As `out`, a JSON file, and as a table beside it."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    write_json(out, {"versions": versions, "rows": list(rows)}, indent=1)
    write_text(beside(out, ".md"), table(rows))
