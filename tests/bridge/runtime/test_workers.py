"""Images in parallel: order, failures, and sums that do not depend on threads."""

import threading
import time

import pytest
import torch
from small_sam import small_sam

from bridge.runtime.workers import each_image, for_images, one_by_one


@pytest.mark.parametrize("workers", [None, 1, 4])
def test_results_keep_their_order(workers):
    def work(item):
        time.sleep(0.01 * (3 - item % 4))
        return item * item

    assert each_image(work, range(9), "x", False, workers) == [i * i for i in range(9)]
    assert each_image(work, [], "x", False, workers) == []


def test_torch_has_one_thread_inside_and_its_own_again_outside():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        inside = each_image(lambda _: torch.get_num_threads(), range(6), "x", False, 3)
        assert set(inside) == {1} and torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError):
            each_image(lambda item: 1 // item, [0], "x", False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_images_run_at_the_same_time():
    both = threading.Barrier(2, timeout=20)  # passes only when two items wait in it together
    assert len(each_image(lambda _: both.wait(), range(4), "x", False, 2)) == 4


def test_first_failure_drops_what_has_not_begun():
    begun = []

    def work(item):
        begun.append(item)
        if item == 1:
            raise KeyError("one")
        time.sleep(0.05)

    with pytest.raises(KeyError, match="one"):
        each_image(work, range(50), "x", False, 2)
    assert len(begun) < 10


def test_large_networks_go_one_by_one():
    assert for_images(small_sam(side=128), 2).func is each_image
    large = small_sam()
    large.image_encoder.img_size = 1024
    assert for_images(large, 2) is one_by_one and for_images(None, 2).func is each_image
    assert one_by_one(lambda item: item + 1, range(3), "x", False) == [1, 2, 3]
