"""DINO's training: the same on any number of devices and processes, and after a stop; compiled
once."""

import numpy as np
import processes
import pytest
from dino_job import OPTIM
from small_dino import SMALL, small

from weaksam_jax.detectors.dino.loss_config import QueryDropConfig
from weaksam_jax.detectors.dino.recipes import voc07
from weaksam_jax.errors import BadInput


def train(out, runs, **how):
    """What `dino_job.py` wrote of these runs."""
    job = processes.write_job(out / "job.json", program="dino_job.py", out=out, runs=runs)
    processes.run(job, timeout=500, **how)
    return {name: dict(np.load(out / f"{name}.npz")) for name in runs}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """On 1 and 4 devices, and on 4 with a stop after 2 of the steps."""
    runs = {"1": {"devices": 1}, "4": {"devices": 4}, "stopped": {"devices": 4, "stops": [2]}}
    return train(tmp_path_factory.mktemp("devices"), runs, devices=4)


def check_alike(found, want):
    """Losses, what was dropped, and all parameters; the order of sums differs alone."""
    assert found.keys() == want.keys() and len(want["loss"]) == OPTIM["steps"]
    np.testing.assert_allclose(found["loss"], want["loss"], rtol=1e-5)
    np.testing.assert_allclose(found["dropped"], want["dropped"], rtol=1e-6)
    for name in want.keys() - {"loss", "dropped", "compiled"}:
        np.testing.assert_allclose(found[name], want[name], rtol=1e-4, atol=2e-5, err_msg=name)


def test_the_number_of_devices_changes_only_the_order_of_sums(trained):
    """With denoising, whose noise is drawn on the devices, and query drop over all of them."""
    check_alike(trained["4"], trained["1"])
    dropped = trained["1"]["dropped"]
    assert (dropped > 0).all() and (dropped < 0.4).all()


def test_a_training_that_stopped_goes_on_to_the_same_bits(trained):
    for name in trained["4"].keys() - {"compiled"}:
        np.testing.assert_array_equal(trained["stopped"][name], trained["4"][name], err_msg=name)


def test_the_step_is_compiled_once_whatever_is_in_the_images(trained):
    """Of 0 to 5 objects; for each mesh, and once more by the process that goes on."""
    counts = {name: int(run["compiled"]) for name, run in trained.items()}
    assert counts == {"1": 1, "4": 1, "stopped": 2}


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(1, 8), (2, 2)])
def test_eight_devices_or_two_processes_train_what_one_trains(trained, tmp_path, count, devices):
    """Devices are those of each process."""
    (found,) = train(tmp_path, {"all": {}}, count=count, devices=devices).values()
    check_alike(found, trained["1"])


def test_micro_batches_that_would_cut_what_query_drop_ranks_are_refused():
    cut = {"micro_batches": 2}
    with pytest.raises(BadInput, match=r"optim\.micro_batches .*set model\.remat to layers or all"):
        small(optim=cut)
    small(optim=cut, loss={"drop": None})
    detector = small(optim=cut, loss={"drop": QueryDropConfig(scope="device")})
    assert detector.config.optim.micro_batches == 2 and SMALL.optim.micro_batches == 1
    assert voc07().model.remat == "layers"
