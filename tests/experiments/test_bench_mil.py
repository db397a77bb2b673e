"""The step that the bench times is ours, and plain PyTorch's does the same work."""

import pytest

from experiments.bench.mil import schedule_hours, work, write_weights


def test_both_forms_have_the_same_losses_before_and_after_an_update(tmp_path):
    """The second loss is that of the updated weights: gradients and Adam agree, too."""
    weights = write_weights(tmp_path / "weights.safetensors", width=16)
    job = {"proposals": 40, "canvas": (64, 96), "weights": str(weights), "repeats": 1}
    job |= {"dtype": "float32", "width": 16, "batch": 1, "precision": "float32"}
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
