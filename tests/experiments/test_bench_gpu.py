"""The GPU card: its whole path on the CPU, its time, its tables."""

import json
import os
import time
from itertools import product

import numpy as np
import pytest

from experiments.bench import gpu
from experiments.bench.gpu import BenchGpu, lines_of, main, run
from experiments.bench.gpu_card import Card, failed, markdown, with_shares, write_card
from experiments.bench.gpu_checks import apart
from experiments.bench.gpu_worker import PARTS, jobs_of
from experiments.bench.packages import NEEDED, check_packages, is_there
from weaksam_jax.detectors import DETECTORS
from weaksam_jax.errors import BadInput

FAST = "--xla_backend_optimization_level=0"  # the programs are compiled, not timed


@pytest.mark.slow
def test_the_whole_card_on_a_cpu(tmp_path, monkeypatch):
    """Every part in its own process at the smallest sizes: all rows, none failed, none dropped."""
    monkeypatch.setenv("XLA_FLAGS", FAST)
    card = run(BenchGpu(tiny=True, budget=2400, out=tmp_path / "card.json"))
    planned = [name for part in PARTS for name in jobs_of(part, True)]
    assert sorted(row["name"] for row in card.rows) == sorted(planned) and card.dropped == []
    assert [row for row in card.rows if failed(row)] == []
    assert {row["device"] for row in card.rows} == {"cpu"}
    checks = [row for row in card.rows if row["part"] == "checks"]
    assert len(checks) >= 14 + 2 * len(DETECTORS)
    assert all(row["passed"] and row["worst"] == 0 for row in checks)  # the CPU beside itself
    timed = [row for row in card.rows if "ms" in row]
    assert all(row["ms"] > 0 for row in timed)
    assert all(row["tflop"] > 0 for row in timed if row["part"] in ("training", "detection"))
    works = {(row["detector"], row["work"], row["form"]) for row in timed}
    ours = {(kind, work, "ours") for kind in DETECTORS for work in ("train", "predict")}
    assert works >= ours | {("mil", "train", "PyTorch"), ("sam_mini", "export", "ours")}
    skipped = [row for row in card.rows if "skipped" in row]
    assert len(skipped) == (0 if is_there("transformers") else 2)
    written = json.loads((tmp_path / "card.json").read_text())
    assert written["environment"]["versions"]["jax"] and len(written["rows"]) == len(card.rows)
    assert "| mil train 64x96 | bfloat16 | ours | 2 |" in (tmp_path / "card.md").read_text()


def test_the_card_has_all_parts_at_the_published_sizes():
    names = [name for part in PARTS for name in jobs_of(part, False)]
    assert len(names) == len(set(names))
    ours = [name.split() for name in names if name.endswith(" ours")]
    found = {(parts[0], parts[2], parts[-2]) for parts in ours}
    works, precisions = ("train", "predict"), ("float32", "tf32", "bfloat16")
    assert found == set(product(DETECTORS, works, precisions))
    assert not {"mini", "light"} & {parts[1] for parts in ours}
    assert {"vit_h encode bfloat16", "vit_b export float32"} <= set(names)
    assert sum("PyTorch" in name for name in names) == 15
    assert sum(part.seconds for part in PARTS.values()) <= 480


def test_what_there_is_no_time_for_is_the_slower_precisions():
    """Every part but SAM's has bfloat16 of all its rows first; SAM has one network at a time."""
    for part in ("training", "PyTorch", "detection"):
        found = [name.split()[-2] for name in jobs_of(part, False)]
        assert found == sorted(found, key=("bfloat16", "tf32", "float32").index)
    assert [name.split()[0] for name in jobs_of("SAM", False)] == ["vit_h"] * 6 + ["vit_b"] * 6


def another_worker(monkeypatch, tmp_path, code):
    """Another program in the place of the worker."""
    (tmp_path / "python").write_text(f"#!/bin/sh\n{code}\n")
    os.chmod(tmp_path / "python", 0o755)
    monkeypatch.setattr(gpu.sys, "executable", str(tmp_path / "python"))


def says(*lines):
    return "".join(f"echo '{json.dumps(line)}'; " for line in lines)


PLAN = {"planned": ["a", "b", "c"]}


def test_what_takes_too_long_is_ended_and_named(tmp_path, monkeypatch):
    """A worker that says one row and then hangs: the row stays, the others are dropped."""
    another_worker(monkeypatch, tmp_path, says(PLAN, {"name": "a"}) + "exec sleep 60")
    monkeypatch.setattr(gpu, "GRACE", 0.0)
    start = time.monotonic()
    card = run(BenchGpu(tiny=True, only="SAM", budget=3.0, out=tmp_path / "card.json"))
    assert time.monotonic() - start < 30
    assert [row["name"] for row in card.rows] == ["a"] and card.dropped == ["b", "c"]
    assert "Dropped for want of time: b, c." in (tmp_path / "card.md").read_text()
    assert list(lines_of("SAM", True, seconds=0)) == []


@pytest.mark.parametrize(
    ("end", "reason"), [("exit 3", "exit status 3"), ("kill -SEGV $$", "SIGSEGV")]
)
def test_a_worker_that_dies_is_a_row_and_not_want_of_time(tmp_path, monkeypatch, end, reason):
    another_worker(monkeypatch, tmp_path, says(PLAN, {"name": "a"}) + end)
    flags = ["--tiny", "--only", "SAM", "--out", str(tmp_path / "card.json")]
    with pytest.raises(BadInput, match="1 rows failed; see SAM"):
        main(flags)
    card = json.loads((tmp_path / "card.json").read_text())
    assert [row["name"] for row in card["rows"]] == ["a", "SAM"] and card["dropped"] == []
    assert card["rows"][1]["failed"] == f"its process ended with {reason}"
    text = (tmp_path / "card.md").read_text()
    assert f"| SAM | its process ended with {reason} |  | **no** |" in text
    assert "- SAM: not measured either: b, c" in text


def test_another_part_another_file_and_a_machine_without_gpu_are_refused(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="--only: xyz names no part; choose from checks, training"):
        run(BenchGpu(only="xyz", out=tmp_path / "card.json"))
    with pytest.raises(BadInput, match=r"--out: .*card.md is no name of a JSON file; give one"):
        run(BenchGpu(tiny=True, out=tmp_path / "card.md"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="nvidia-smi finds no GPU; try its path with --tiny"):
        run(BenchGpu(out=tmp_path / "card.json"))


def test_all_missing_packages_are_named_in_one_line():
    needed = {"json": "here", "xyz_a": "xyz-a", "xyz_b.part": "xyz-b"}
    with pytest.raises(BadInput, match="bench gpu: lacks xyz-a, xyz-b; pip install --no-deps xyz"):
        check_packages("bench gpu", needed)
    check_packages("bench gpu", NEEDED)  # here there are all of them


def row_of(form, ms, **more):
    same = {"detector": "mil", "work": "train", "precision": "bfloat16", "images": 8}
    return {"name": form, "form": form, "ms": ms, **same, **more}


def test_shares_of_the_peak():
    """989.4 TFLOP/s in bfloat16: 9.894 TFLOP in 100 ms are 10 %; PyTorch's work is the same."""
    rows = [row_of("ours", 100.0, tflop=9.894), row_of("PyTorch", 200.0, memory_gib=1.5)]
    rows += [row_of("PyTorch", 100.0) | {"images": 4}]  # half of them had room
    on_card = [row | {"device": "NVIDIA H100 80GB HBM3"} for row in rows]
    ours, other, half = with_shares(on_card)
    assert ours["share_of_peak"] == pytest.approx(0.1)
    assert other["share_of_peak"] == half["share_of_peak"] == pytest.approx(0.05)
    assert (ours["images_per_s"], other["images_per_s"]) == (80.0, 40.0)
    assert all("share_of_peak" not in row for row in with_shares(rows))


def test_the_card_in_words(tmp_path):
    environment = {"card": "none (CPU)", "python": "3.12.3", "versions": {"jax": "0.11.2"}}
    rows = [
        {"name": "check NMS", "worst": 0.0, "limit": 0.0, "passed": True},
        {"name": "check RoIPool", "worst": 0.5, "limit": 1e-5, "passed": False},
        {"name": "x", "failed": "MemoryError: no | memory"},
        row_of("ours", 100.0, tflop=1.0, device="cpu", note="16 images have no room"),
        {"name": "y", "skipped": "transformers is not installed"},
    ]
    card = Card({**environment, "date": "2026-01-01"}, rows, ["a", "b"], seconds=12.3)
    write_card(tmp_path / "card.json", card)
    text = (tmp_path / "card.md").read_text()
    assert text == markdown(card, with_shares(rows))
    for line in (
        "none (CPU); computed on cpu; Python 3.12.3, jax 0.11.2; 2026-01-01; 12 s",
        "| check RoIPool | 0.5 | 1e-05 | **no** |",
        "| x | MemoryError: no   memory |  | **no** |",
        "| mil train | bfloat16 | ours | 8 | 100.0 | 80.0 | - | - |",
        "- ours: 16 images have no room",
        "- y: not measured: transformers is not installed",
        "Dropped for want of time: a, b.",
        "| SAM ViT-H encoding | 22 to 25 per A100 | segment-anything-fast |",
    ):
        assert line in text.splitlines()


def test_what_is_not_finite_is_not_near():
    ones = np.ones(3)
    assert apart(ones, ones) == 0 and apart(ones, 1.1 * ones) == pytest.approx(0.1 / 1.1)
    assert apart(np.array([np.nan]), np.array([np.nan])) == np.inf
    assert apart(np.zeros(0), np.zeros(0)) == 0
