"""Rows of the GPU card: what is ready, what fails, what has no room, what counts flops."""

import importlib
import json
import threading
import time
from functools import partial

import jax
import numpy as np
import pytest
import torch

from experiments.bench import gpu_ours, gpu_sam, gpu_torch, gpu_worker, torch_dino
from experiments.bench.gpu_ours import Ready
from experiments.bench.gpu_sizes import ROW_SECONDS, TINY, Job, cases, images_of, timed
from experiments.bench.gpu_worker import outcome, rows_of, work

NAN = float("nan")


def test_numbers_that_json_has_none_of_are_text_and_a_loss_of_nan_fails():
    assert outcome(Job(lambda: {"worst": float("inf")}), None) == {"worst": "inf"}
    found = outcome(Job(lambda: {"ms": 1.0, "loss": NAN}), None)
    assert found == {"ms": 1.0, "loss": "nan", "failed": "the loss is nan"}
    json.dumps(found, allow_nan=False)
    assert outcome(Job(lambda: 1 / 0), None)["failed"].startswith("ZeroDivisionError: division")


def test_jobs_of_one_word_are_prepared_together_and_measured_in_their_order():
    """Two that wait for each other would never be ready one by one."""
    begun = []

    def prepare(name):
        begun.append(name)
        while len(begun) < 2:
            time.sleep(0.01)
        if name == "b":
            raise MemoryError("b")
        return 2 * name

    jobs = {
        name: Job(lambda ready: {"got": ready}, partial(prepare, name), together="x")
        for name in "ab"
    }
    jobs["c"] = Job(lambda: {"got": len(begun)})
    a, b, c = rows_of(jobs, time.monotonic() + 60)
    assert (a, c) == ({"name": "a", "got": "aa"}, {"name": "c", "got": 2})
    assert b == {"name": "b", "failed": "MemoryError: b"}


class Clock:
    """A clock that only work moves."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(gpu_worker, "time", clock)
    return clock


def test_a_job_of_a_slow_kind_is_passed_over_and_others_are_not(clock):
    def slow():
        clock.now += 3.0
        return {}

    jobs = {"a": Job(slow, kind="slow"), "b": Job(slow, kind="slow"), "c": Job(dict, kind="fast")}
    assert [row["name"] for row in rows_of(jobs, 5.0)] == ["a", "c"]


def test_what_is_not_ready_in_time_holds_up_nobody(clock, monkeypatch):
    never, timeouts = threading.Event(), []

    def wait(futures, timeout):
        timeouts.append(timeout)
        list(futures)[-1].result()  # b's

    monkeypatch.setattr(gpu_worker, "wait", wait)
    jobs = {
        "a": Job(dict, never.wait, together="x"),
        "b": Job(dict, lambda: {"ms": 1}, together="x"),
    }
    rows = rows_of(jobs, 90.0)
    assert next(rows) == {"name": "b", "ms": 1, "beside": "others were compiled meanwhile"}
    assert timeouts == [90.0 - 2 * ROW_SECONDS]
    monkeypatch.setattr(gpu_worker, "wait", lambda futures, timeout: timeouts.append(timeout))
    assert list(rows) == [] and timeouts[1:] == [90.0 - ROW_SECONDS]
    never.set()


def test_a_part_that_cannot_begin_is_a_row(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named 'xyz'")

    monkeypatch.setattr(gpu_worker, "import_module", broken)
    (row,) = work("SAM", True, 10.0)
    assert row["name"] == "SAM" and row["failed"] == "ModuleNotFoundError: No module named 'xyz'"


def test_a_cpu_is_refused_unless_it_is_for_the_path(monkeypatch):
    monkeypatch.setattr(gpu_sam, "measure", lambda *rest: {"ms": 1.0})
    plan, row = work("SAM", False, 10.0)
    assert len(plan["planned"]) == 12 and row["failed"] == "no GPU is found"
    assert row["device"] == "cpu" and row["name"] == "SAM"
    _, *rows = work("SAM", True, 10.0)
    assert [row["device"] for row in rows] == ["cpu", "cpu"] and rows[0]["ms"] == 1.0


def test_timed_calls_end_with_their_time_but_are_two_at_least():
    calls = []
    found = timed(lambda: calls.append(time.sleep(0.02)), lambda _: None, 10, limit=0.0)
    assert len(calls) == 3 and found["ms"] >= 20
    timed(lambda: calls.append(0), lambda _: None, 4)
    assert len(calls) == 3 + 5


@pytest.fixture(scope="module")
def mil():
    return cases(TINY, "train")[0]


def test_flops_are_counted_where_the_device_is_a_plugin(mil, monkeypatch):
    """Only the CPU is asked, by name: the client of a GPU counts none in what is not compiled. The
    forms of both are the same work, less what is in loops, which count once."""
    devices, found = jax.devices, {}

    def named(platform=None):
        assert platform == "cpu", "a plugin was asked"
        return devices(platform)

    monkeypatch.setattr(jax, "devices", named)
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        gpu_ours._tflop.cache_clear()
        found[backend] = gpu_ours.flops_of(mil)["tflop"]
    assert found["gpu"] == pytest.approx(found["cpu"], rel=0.3) and found["cpu"] > 0


def test_flops_that_nobody_can_count_are_named(mil, monkeypatch):
    pxla = importlib.import_module("jax._src.interpreters.pxla")
    monkeypatch.setattr(pxla.xb, "using_pjrt_c_api", lambda backend=None: True)
    gpu_ours._tflop.cache_clear()
    assert list(gpu_ours.flops_of(mil)) == ["no_tflop"]


def test_half_the_images_where_there_is_no_room(mil, monkeypatch):
    asked = []

    def run(ready, repeats):
        asked.append(images_of(ready.case))
        if len(asked) < 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return {"ms": 1.0}

    monkeypatch.setattr(gpu_ours, "prepare", lambda case: Ready(case, None, {"tflop": 1.0}))
    case = mil.__class__(**{**vars(mil), "images": 8})
    row = gpu_ours.measure(case, run, 1, ready=Ready(case, None, {}))
    assert asked == [8, 4, 2] and row["images"] == 2 and row["tflop"] == 1.0
    assert row["note"] == "8 images at a time have no room"

    def other(ready, repeats):
        raise jax.errors.JaxRuntimeError("INTERNAL: no")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        gpu_ours.measure(case, other, 1, ready=Ready(case, None, {}))


def test_half_the_images_of_pytorch(mil, monkeypatch):
    asked = []

    def run(form, case, sizes):
        asked.append(images_of(case))
        if len(asked) < 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"ms": 1.0}

    monkeypatch.setattr(gpu_torch, "run", run)
    row = gpu_torch.measure(None, mil, TINY)
    assert asked == [2, 1] and row["note"] == "2 images at a time have no room"


def test_sam_is_kept_one_at_a_time(monkeypatch):
    monkeypatch.setattr(gpu_sam, "_made", lambda name: [name])
    monkeypatch.setattr(gpu_sam, "_kept", {})
    first = gpu_sam.sam_of("vit_h")
    assert gpu_sam.sam_of("vit_h") is first
    assert gpu_sam.sam_of("vit_b") == ["vit_b"] and list(gpu_sam._kept) == ["vit_b"]


def test_objects_and_detections_of_the_dino_in_pytorch():
    batch = {
        "image": np.zeros((1, 100, 200, 3), np.uint8),
        "boxes": np.float32([[[20, 10, 60, 90]]]),
        "labels": np.int32([[7]]),
    }
    found = torch_dino.targets(batch, 0)
    assert found["class_labels"].tolist() == [7]
    np.testing.assert_allclose(found["boxes"], [[0.2, 0.5, 0.2, 0.8]], rtol=1e-6)
    logits = torch.tensor([[[0.0, 3.0], [2.0, -1.0]]])
    scores, labels, boxes = torch_dino.best(logits, torch.arange(8.0).reshape(1, 2, 4), 3)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-np.float64([[3, 2, 0]]))), rtol=1e-6)
    assert labels.tolist() == [[1, 0, 0]]
    assert boxes[0, :, 0].tolist() == [0, 4, 0]


@pytest.mark.parametrize("which", ["train", "predict"])
def test_the_dino_in_pytorch_learns_and_detects(which):
    """With transformers, which is no requirement of ours."""
    pytest.importorskip("transformers")
    row = outcome(gpu_torch.jobs(TINY)[f"dino mini {which} 64x96 bfloat16 PyTorch"], None)
    assert "failed" not in row and row["ms"] > 0 and row["images"] == 2


def test_the_dino_in_pytorch_trains_what_ours_trains():
    """The backbone's last three stages, and all behind it."""
    pytest.importorskip("transformers")
    case = next(case for case in cases(TINY, "train") if case.detector == "dino")
    network = torch_dino.network(torch_dino.detector_of(case), TINY)
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    assert frozen and all("embedder" in name or "stages.0." in name for name in frozen)
