"""The bench: its entries and names; the MIL step it times is ours, plain PyTorch's the same."""

import pytest

from experiments.bench.__main__ import SUITES, main
from experiments.bench.entry import Entry
from experiments.bench.mil import schedule_hours
from experiments.bench.mil_step import work, write_weights
from experiments.bench.pairs import measure
from weaksam_jax.errors import BadInput


def test_both_forms_have_the_same_losses_before_and_after_an_update(tmp_path):
    """The second loss is that of the updated weights: gradients and Adam agree, too."""
    weights = write_weights(tmp_path / "weights.safetensors", width=16)
    job = {"proposals": 40, "size": (64, 96), "weights": str(weights), "repeats": 1}
    job |= {"precision": "float32", "width": 16, "batch": 1}
    ours, other = (work(job | {"form": form}) for form in ("ours", "torch"))
    assert ours.loss == pytest.approx(other.loss, rel=1e-5)
    assert ours.after_loss == pytest.approx(other.after_loss, rel=1e-4)
    assert abs(ours.after_loss - ours.loss) > 1e-4 * ours.loss
    assert ours.seconds > 0 and ours.flops > 1e9
    # VGG16's 14.7 million weights, and Adam's two moments of them, are the least that it holds.
    assert 3 * 4 * 14.7e6 / 2**20 < ours.program_mb < ours.peak_mb


def test_hours_of_the_schedules():
    """30000, 32000 and 125000 steps of 8 images."""
    hours = schedule_hours(100.0)
    assert hours == {"voc07": 0.67, "voc12": 0.71, "coco14": 2.78}


def test_an_entry_is_timed_in_both_forms_and_says_what_they_agree_on():
    calls = []
    agree = lambda ours, other: f"{ours} and {other}"  # noqa: E731
    entry = Entry("adding", lambda: calls.append("a") or 3, "b", lambda: calls.append("b"), agree)
    row = measure(entry, 2, cpu=False)
    assert calls == ["a", "b"] * 3
    assert (row["what"], row["other"], row["clock"]) == ("adding (3 and None)", "b", "wall")
    assert row["ratio"] > 0 and row["ours_ms"] >= row["ours_min_ms"] >= 0


def test_a_named_bench_takes_its_own_flags_and_another_name_is_refused(monkeypatch):
    given = []
    monkeypatch.setitem(SUITES, "mil", given.append)
    main(["mil", "--batch", "8"])
    assert given == [["--batch", "8"]]
    with pytest.raises(BadInput, match="milk is no bench; choose from mil"):
        main(["milk"])
    with pytest.raises(BadInput, match="--only: xyz names no entry; choose from roi_align_213"):
        main(["--only", "xyz"])
