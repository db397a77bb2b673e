"""`experiments.bench tpu`: what is read from a program's text, and a step that compiles."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import tpu
from experiments.bench.hlo import Loop, bytes_of, read
from experiments.bench.tpu import BenchTpu, cases_of, check_libtpu, table, turns
from weaksam_jax.detectors import DETECTORS
from weaksam_jax.errors import BadInput
from weaksam_jax.ops.roi import roi_pool

ROOT = Path(__file__).parents[2]
PROGRAM = """HloModule jit_step, is_scheduled=true

%inner (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %exp.1 = f32[8]{0} exponential(%a), backend_config={"estimated_cycles":"7"}
}

%body (b: (s32[], f32[8])) -> (s32[], f32[8]) {
  %b = (s32[], f32[8]{0}) parameter(0)
  %call.1 = f32[8]{0} call(%b), to_apply=%inner
  %sum = f32[2,8]{1,0} all-reduce-start(%call.1), replica_groups={}
  ROOT %fusion.1 = (s32[], f32[8]{0}) fusion(%b), calls=%inner, metadata={op_name="jit(f)/x"}, """
PROGRAM += """backend_config={"estimated_cycles":"5"}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %while.1 = (s32[], f32[8]{0}) while(%p), condition=%c, body=%body, """
PROGRAM += """metadata={op_name="jit(f)/known"}, backend_config={"known_trip_count":{"n":"3"}}
  %while.2 = (s32[], f32[8]{0}) while(%p), condition=%c, body=%body, """
PROGRAM += """metadata={op_name="jit(f)/open"}
  %sort.1 = f32[8]{0} sort(%p), dimensions={0}, backend_config={"estimated_cycles":"100"}
  %hello = f32[8]{0} custom-call(%p), custom_call_target="xla_python_cpu_callback"
  ROOT %r = f32[8]{0} copy(%sort.1)
}
"""


def test_instructions_count_once_per_turn_of_their_loops():
    """Two loops of 3 (known) and 10 (assumed) turns: 13 bodies of 7 + 5 cycles, one sort of 100."""
    asked = []
    found = read(PROGRAM, lambda source: asked.append(source) or 10)
    assert found.cycles == {
        ("exponential", "exp.1", ""): 7 * 13,
        ("fusion", "fusion.1", "jit(f)/x"): 5 * 13,
        ("sort", "sort.1", ""): 100,
    }
    assert asked == ["jit(f)/open"]
    assert found.loops == [
        Loop("jit(f)/known", 3, True, times=1),
        Loop("jit(f)/open", 10, False, times=1),
    ]
    assert found.collectives == {"n": 13, "bytes": 13 * 2 * 8 * 4}
    assert found.operations["sort"] == 1 and found.operations["call"] == 13
    assert found.host_calls == ["xla_python_cpu_callback"]


@pytest.mark.parametrize(
    ("kind", "count"),
    [("f32[2,3]{1,0}", 24), ("(bf16[4], pred[5], s32[])", 8 + 5 + 4), ("u8[7]", 7), ("token[]", 0)],
)
def test_bytes_of_a_type(kind, count):
    assert bytes_of(kind) == count


def test_a_loop_that_counts_to_a_constant_says_how_often_it_turns():
    limits = {"%n), direction=LT": 8, "%n), direction=GE": 3, "%m), direction=LT": 3}
    for end, count in limits.items():
        text = f"""
%cond.1 (p: (s32[], f32[8])) -> pred[] {{
  %n = s32[]{{:T(128)}} constant(8)
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  %m = s32[]{{:T(128)}} get-tuple-element(%p), index=1
  ROOT %lt = pred[]{{:T(512)}} compare(%i, {end}
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %while.1 = (s32[], f32[8]) while(%x), condition=%cond.1, body=%body.1
}}
"""
        (loop,) = read(text, lambda source: 3).loops
        assert (loop.turns, loop.known) == (count, count == 8)


def test_roi_pool_needs_no_turn_for_a_box_as_large_as_the_image(monkeypatch):
    """Two windows of its tables cover each bin; a box that is larger than the map has turns."""
    asked, loop = [], jax.lax.fori_loop
    monkeypatch.setattr(
        jax.lax, "fori_loop", lambda low, high, *rest: asked.append(high) or loop(low, high, *rest)
    )
    for size in ((60, 80), (150, 250), (86, 115)):
        box = jnp.asarray([[0, 0, 8 * size[1] - 1, 8 * size[0] - 1]], jnp.float32)
        roi_pool(jnp.zeros((*size, 1)), box, spatial_scale=1 / 8)
    assert [int(one) for one in asked] == [0, 0, 0]
    assert turns("jit(step)/MilNetwork.outputs/while/body/closed_call/while") == 0
    assert turns("jit(run)/while") == 10


def test_every_detector_is_there_in_both_works_and_precisions():
    names = [case.name for case in cases_of(BenchTpu())]
    assert len(names) == len(set(names))
    for kind in DETECTORS:
        own = [name.split() for name in names if name.startswith(f"{kind} ")]
        found = {(parts[2], parts[-1]) for parts in own}
        assert found == set(product(("train", "predict"), ("float32", "bfloat16")))
    only = cases_of(BenchTpu(only="mil train bfloat16", size=((64, 64),)))
    assert {case.name for case in only} == {
        "mil voc07_mist train 64x64 n=256 bfloat16",
        "mil voc07_oicr train 64x64 n=256 bfloat16",
    }
    with pytest.raises(BadInput, match="--only: milk names no program; choose from dino"):
        cases_of(BenchTpu(only="milk"))


@pytest.mark.parametrize(
    ("found", "problem"), [(None, "libtpu is not installed"), ("0.0.1", "libtpu 0.0.1 does not")]
)
def test_a_missing_libtpu_is_one_line(monkeypatch, found, problem):
    def version(name):
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(tpu.importlib.metadata, "version", version)
    with pytest.raises(BadInput, match=rf"{problem}.*; pip install .libtpu==[\d.]+\.\*") as told:
        check_libtpu()
    assert "\n" not in str(told.value)


def test_the_table_says_what_did_not_compile():
    row = {"name": "a", "topology": "v5e:2x2", "compiles": False, "compile_s": 2.0}
    row |= {"chip_gib": 16, "problem": "Ran out of memory"}
    lines = table([row]).splitlines()
    assert (
        lines[2] == "| a | v5e:2x2 | no | - of 16 | - | - | -, - | - | - | - | Ran out of memory |"
    )
    assert [line.count("|") for line in lines] == [12] * 3


def test_the_table_names_functions_and_not_how_jax_runs_them():
    source = "jit(step)/shard_map/transpose(jvp(MilNetwork))/MilNetwork.outputs/vmap()/cond/"
    heaviest = [[27.46, "fusion", "fusion.34", f"{source}branch_0_fun/cnh,cnw->chw/dot_general"]]
    row = {"name": "a", "topology": "v5e:2x2", "compiles": True, "compile_s": 2.0}
    row |= {"chip_gib": 16, "host_calls": [], "heaviest": heaviest}
    assert "| MilNetwork.outputs/cnh,cnw->chw/dot_general 27.5 |" in table([row])


def libtpu_folder():
    """Where CI puts it (`make tpu-compiler`), beside the virtual environment's packages; None where
    it is among them."""
    folder = Path(sys.prefix) / "libtpu"
    return folder if folder.is_dir() else None


def compiled_rows(tmp_path):
    """What the command says of small programs, in a process of its own."""
    path = os.pathsep.join(map(str, filter(None, [libtpu_folder(), ROOT])))
    command = [sys.executable, "-m", "experiments.bench", "tpu", "--recipe", "mini"]
    command += ["--size", "64", "64", "--topology", "v5e:2x2", "--precision", "bfloat16"]
    command += ["--only", "mil train", "--effort", "-1", "--out", str(tmp_path / "found.json")]
    env = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": ""}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "found.json").read_text())["rows"]


@pytest.mark.skipif(
    libtpu_folder() is None and importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed (make tpu-compiler)",
)
def test_a_small_step_compiles_for_a_tpu(tmp_path):
    (row,) = compiled_rows(tmp_path)
    assert row["compiles"] and row["host_calls"] == []
    assert row["chips"] == 4 and row["collectives"] >= 1  # the gradient's mean
    # At least parameters and Adam's two moments, at most a chip.
    detector = DETECTORS["mil"](DETECTORS["mil"].presets["mini"](), 20)
    weights = sum(one.size for one in tpu.jax.tree.leaves(detector.shapes()))
    assert 3 * 4 * weights / 2**30 - 0.01 < row["memory_gib"] < 16
    assert row["tflop"] > 0 and row["cycles_s"] > 0 and row["roofline_images_per_s"] > 0
