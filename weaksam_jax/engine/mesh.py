"""The one mesh: its only axis, `data`, shards the images of a batch."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from weaksam_jax.errors import BadInput

AXIS = "data"


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axis `data` over `devices` (default: all of them, in every process)."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def local_mesh() -> Mesh:
    """The mesh over the devices of this process: each detects on images of its own."""
    return Mesh(np.asarray(jax.local_devices()), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device: parameters, optimizer state, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The first axis cut into equal parts over the devices: batches."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def check_batch(images: int, devices: int, micro_batches: int = 1) -> None:
    """Raises `BadInput` unless the images of a batch can be dealt out evenly to the devices, and
    those of a device to its micro-batches."""
    if images % (devices * micro_batches):
        parts = f" with {micro_batches} micro-batches each" if micro_batches > 1 else ""
        problem = f"{images} images do not divide among {devices} devices{parts}"
        hint = f"choose a multiple of {devices * micro_batches}, or another micro_batches"
        raise BadInput("batch_size", problem, hint)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Host arrays `[images, ...]` of this process -> global arrays sharded over `data`.

    Raises `BadInput` when the images of a batch cannot be dealt out evenly to the devices.
    """
    check_batch(len(next(iter(batch.values()))), len(mesh.local_devices))
    put = jax.make_array_from_process_local_data
    return {name: put(sharded(mesh), value) for name, value in batch.items()}


def put_images(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """As `put_batch`, of any number of images: the last one is repeated until they can be dealt out
    evenly. What becomes of the repeated rows is to be passed over."""
    images = len(next(iter(batch.values())))
    rows = np.minimum(np.arange(images + -images % len(mesh.local_devices)), images - 1)
    whole = len(rows) == images
    return put_batch({k: v if whole else np.asarray(v)[rows] for k, v in batch.items()}, mesh)


def over_images(function: Callable, mesh: Mesh, donate: Sequence[int] = ()) -> Callable:
    """`function(shared, *batched)` compiled for a mesh, once per shape.

    The first axis of every array in `batched`, and of every result, is that of images: each device
    computes its own, and nothing goes from one to another. `shared` (parameters, `replicated`) is
    the same on all. donate: places of arguments whose buffers the results may take.
    """

    @functools.wraps(function)
    def run(shared, *batched):
        specs = (PartitionSpec(), *[PartitionSpec(AXIS)] * len(batched))
        how = {"mesh": mesh, "in_specs": specs, "out_specs": PartitionSpec(AXIS)}
        return jax.shard_map(function, check_vma=False, **how)(shared, *batched)

    return jax.jit(run, donate_argnums=tuple(donate))
