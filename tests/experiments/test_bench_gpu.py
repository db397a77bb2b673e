"""The GPU card: its whole path on the CPU, its time, its tables."""

import json
import os
import time
from itertools import product

import numpy as np
import pytest

from experiments.bench import gpu
from experiments.bench.gpu import BenchGpu, rows_of, run
from experiments.bench.gpu_card import Card, markdown, with_shares, write_card
from experiments.bench.gpu_checks import apart
from experiments.bench.gpu_worker import PARTS, jobs_of
from weaksam_jax.detectors import DETECTORS
from weaksam_jax.errors import BadInput

FAST = "--xla_backend_optimization_level=0"  # the programs are compiled, not timed


@pytest.mark.slow
def test_the_whole_card_on_a_cpu(tmp_path, monkeypatch):
    """Every part in its own process at the smallest sizes: all rows, none failed, none dropped."""
    monkeypatch.setenv("XLA_FLAGS", FAST)
    card = run(BenchGpu(tiny=True, budget=800, out=tmp_path / "card"))
    planned = [name for part in PARTS for name in jobs_of(part, True)]
    assert [row["name"] for row in card.rows] == planned and card.dropped == []
    assert [row for row in card.rows if "failed" in row] == []
    checks = [row for row in card.rows if row["part"] == "checks"]
    assert len(checks) >= 10 + 2 * len(DETECTORS)
    assert all(row["passed"] and row["worst"] == 0 for row in checks)  # the CPU beside itself
    timed = [row for row in card.rows if "ms" in row]
    assert all(row["ms"] > 0 for row in timed)
    works = {(row["detector"], row["work"], row["form"]) for row in timed}
    ours = {(kind, work, "ours") for kind in DETECTORS for work in ("train", "predict")}
    assert works >= ours | {("mil", "train", "PyTorch"), ("sam_mini", "export", "ours")}
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
    assert sum("PyTorch" in name for name in names) == 9
    assert sum(part.seconds for part in PARTS.values()) <= 480


def slow_worker(monkeypatch, tmp_path, code):
    """Another program in the place of the worker."""
    (tmp_path / "python").write_text(f"#!/bin/sh\n{code}\n")
    os.chmod(tmp_path / "python", 0o755)
    monkeypatch.setattr(gpu.sys, "executable", str(tmp_path / "python"))


def test_what_takes_too_long_is_ended_and_named(tmp_path, monkeypatch):
    """A worker that says one row and then hangs: the row stays, the others are dropped."""
    first, *others = jobs_of("SAM", True)
    slow_worker(monkeypatch, tmp_path, f"echo '{json.dumps({'name': first})}'; exec sleep 60")
    start = time.monotonic()
    card = run(BenchGpu(tiny=True, only="SAM", budget=5.0, out=tmp_path / "card"))
    assert time.monotonic() - start < 30
    assert [row["name"] for row in card.rows] == [first] and card.dropped == others
    assert f"Dropped for want of time: {', '.join(others)}." in (tmp_path / "card.md").read_text()
    assert list(rows_of("SAM", True, seconds=0)) == []


def test_another_part_is_refused(tmp_path):
    with pytest.raises(BadInput, match="--only: xyz names no part; choose from checks, training"):
        run(BenchGpu(only="xyz", out=tmp_path / "card"))


def row_of(form, ms, **more):
    same = {"detector": "mil", "work": "train", "precision": "bfloat16", "images": 8}
    return {"name": form, "form": form, "ms": ms, **same, **more}


def test_shares_of_the_peak():
    """989.4 TFLOP/s in bfloat16: 9.894 TFLOP in 100 ms are 10 %; PyTorch's work is the same."""
    rows = [row_of("ours", 100.0, tflop=9.894), row_of("PyTorch", 200.0, memory_gib=1.5)]
    ours, other = with_shares(rows, "NVIDIA H100 80GB HBM3, 580.159, 81559 MiB")
    assert ours["share_of_peak"] == pytest.approx(0.1)
    assert other["share_of_peak"] == pytest.approx(0.05)
    assert (ours["images_per_s"], other["images_per_s"]) == (80.0, 40.0)
    assert all("share_of_peak" not in row for row in with_shares(rows, "none (CPU)"))


def test_the_card_in_words(tmp_path):
    environment = {"card": "none (CPU)", "python": "3.12.3", "versions": {"jax": "0.11.2"}}
    rows = [
        {"name": "check NMS", "worst": 0.0, "limit": 0.0, "passed": True},
        {"name": "check RoIPool", "worst": 0.5, "limit": 1e-5, "passed": False},
        {"name": "x", "failed": "MemoryError: no | memory"},
        row_of("ours", 100.0, tflop=1.0),
    ]
    card = Card({**environment, "date": "2026-01-01"}, rows, ["a", "b"], seconds=12.3)
    write_card(tmp_path / "card", card)
    text = (tmp_path / "card.md").read_text()
    assert text == markdown(card, with_shares(rows, "none (CPU)"))
    for line in (
        "none (CPU); Python 3.12.3, jax 0.11.2; 2026-01-01; 12 s",
        "| check RoIPool | 0.5 | 1e-05 | **no** |",
        "| x | MemoryError: no   memory |  | **no** |",
        "| mil train | bfloat16 | ours | 8 | 100.0 | 80.0 | - | - |",
        "Dropped for want of time: a, b.",
        "| SAM ViT-H encoding | 22 to 25 per A100 | segment-anything-fast |",
    ):
        assert line in text.splitlines()


def test_what_is_not_finite_is_not_near():
    ones = np.ones(3)
    assert apart(ones, ones) == 0 and apart(ones, 1.1 * ones) == pytest.approx(0.1 / 1.1)
    assert apart(np.array([np.nan]), np.array([np.nan])) == np.inf
    assert apart(np.zeros(0), np.zeros(0)) == 0
