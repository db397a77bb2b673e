"""Detection on several devices and by several processes equals that on one."""

import json

import detect_job
import numpy as np
import processes
import pytest

from weaksam_jax.detectors import DETECTORS, detect_split

JOB = processes.HERE / "detect_job.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, and an empty folder for each job."""
    root = tmp_path_factory.mktemp("devices")
    for name in ("data", "devices", "processes"):
        (root / name).mkdir()
    return root


@pytest.fixture(scope="module")
def on_devices(folder):
    """What one process with four devices says."""
    (said,) = processes.run([JOB, folder / "devices"], devices=4, timeout=400)
    return said.splitlines()


def test_detections_on_four_devices_are_those_of_one(folder, on_devices):
    """Three images are dealt out to four devices; a batch is two images in the config."""
    assert on_devices[:-1] == [f"{kind} 4" for kind in DETECTORS]
    found = json.loads((folder / "devices" / "found.json").read_text())
    detector, params, views = detect_job.views_of_rectangles(folder / "data")
    alone = detect_split(detector.predictor(params), views, progress=False)
    assert int(on_devices[-1]) == len(found) == len(alone) > 6
    for name in ("image_id", "file_name", "category_id"):
        assert [one[name] for one in found] == [one[name] for one in alone]
    for name in ("bbox", "score"):
        values = [np.asarray([one[name] for one in rows]) for rows in (found, alone)]
        np.testing.assert_allclose(*values, rtol=1e-5, atol=0.02)


def test_two_processes_share_the_images_and_write_one_file(folder, on_devices):
    own = folder / "processes"
    said = processes.run([JOB, own], count=2, devices=2, timeout=400)
    assert said[0] == said[1] == f"{on_devices[-1]}\n"
    both = [(folder / name / "found.json").read_bytes() for name in ("devices", "processes")]
    assert both[0] == both[1]
    assert [one.name for one in own.iterdir()] == ["found.json"]
