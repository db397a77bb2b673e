"""Images in parallel, with the same bits whatever the number of cores."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

from weaksam_jax.progress import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")


def each_image(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    description: str,
    progress: bool = True,
    workers: int | None = None,
) -> list[Result]:
    """`[work(item) for item in items]`, several items at a time, with a progress bar.

    workers: threads, one image each; None: as many as torch would use inside one operator
    (`OMP_NUM_THREADS`, else the cores). Inside `work` torch and BLAS have one thread: operators
    that are split over threads sum in another order with another number of threads, and on a busy
    machine from run to run. When one item fails, those not begun are dropped and the first
    exception is raised; the same for Ctrl-C and SIGTERM.
    """
    count = max(1, torch.get_num_threads() if workers is None else workers)
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    bar = progress_bar(None, description, total=len(items), disable=not progress)

    def counted(item: Item) -> Result:
        result = work(item)
        bar.update()
        return result

    with _one_thread_per_operator(), pool, bar:
        futures = [pool.submit(counted, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def one_by_one(
    work: Callable[[Item], Result], items: Sequence[Item], description: str, progress: bool = True
) -> list[Result]:
    """As `each_image`, one item at a time with all threads: for networks that fill the machine.

    On a CPU the last bits then depend on the number of threads.
    """
    bar = progress_bar(items, description, disable=not progress)
    return [work(item) for item in bar]


def for_images(network: object, workers: int | None) -> Callable[..., list]:
    """`one_by_one` for a SAM at full size or on a GPU, else `each_image` with that many workers."""
    encoder = getattr(network, "image_encoder", None)
    large = encoder is not None and (encoder.img_size > 512 or network.device.type != "cpu")
    return one_by_one if large else functools.partial(each_image, workers=workers)


@contextlib.contextmanager
def _one_thread_per_operator() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)
