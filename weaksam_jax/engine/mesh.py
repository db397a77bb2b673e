"""The one mesh: its only axis, `data`, shards the images of a batch."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from weaksam_jax.errors import BadInput

AXIS = "data"


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axis `data` over `devices` (default: all of them, in every process)."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device: parameters, optimizer state, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The first axis cut into equal parts over the devices: batches."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Host arrays `[images, ...]` of this process -> global arrays sharded over `data`.

    Raises `BadInput` when the images of a batch cannot be dealt out evenly to the devices.
    """
    images = len(next(iter(batch.values())))
    local = len(mesh.local_devices)
    if images % local:
        problem = f"{images} images a batch do not divide among {local} devices"
        raise BadInput("batch size", problem, f"choose a multiple of {local}")
    put = jax.make_array_from_process_local_data
    return {name: put(sharded(mesh), value) for name, value in batch.items()}
