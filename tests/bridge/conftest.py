"""Small networks on one thread: threads that wait for each other cost more than they save."""

import pytest
import torch
from small_sam import HEIGHT, WIDTH, blocky_image, small_sam


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sam():
    """The random SAM of `small_sam`; a module's own fixture of this name goes before."""
    return small_sam()


@pytest.fixture(scope="module")
def image():
    """uint8 RGB `[HEIGHT, WIDTH, 3]`."""
    return blocky_image(3, HEIGHT, WIDTH)
