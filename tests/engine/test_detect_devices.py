"""Detection on several devices and by several processes equals that on one."""

import json

import processes
import pytest

from weaksam_jax.detectors import DETECTORS

JOB = processes.HERE / "detect_job.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for each job."""
    root = tmp_path_factory.mktemp("jobs")
    for name in ("devices", "processes"):
        (root / name).mkdir()
    return root


@pytest.fixture(scope="module")
def on_devices(folder):
    """What one process with four devices says."""
    (said,) = processes.run([JOB, folder / "devices"], devices=4, timeout=400)
    return said.splitlines()


def test_detections_on_four_devices_are_those_of_one(folder, on_devices):
    """The job compares them for every detector, on three images; and what it wrote to a file, image
    by image, is what it found of all at once."""
    assert on_devices[:-1] == [f"{kind} 4" for kind in DETECTORS]
    both = [(folder / "devices" / name).read_bytes() for name in ("found.json", "at once.json")]
    assert both[0] == both[1]
    found = json.loads(both[0])
    assert int(on_devices[-1]) == len(found) > 6
    assert list(dict.fromkeys(one["image_id"] for one in found)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_two_processes_share_the_images_and_write_one_file(folder, on_devices):
    own = folder / "processes"
    said = processes.run([JOB, own], count=2, devices=2, timeout=400)
    assert said[0] == said[1] == f"{on_devices[-1]}\n"
    both = [(folder / name / "found.json").read_bytes() for name in ("devices", "processes")]
    assert both[0] == both[1]
    assert [one.name for one in own.iterdir()] == ["found.json"]
