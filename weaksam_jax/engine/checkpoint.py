"""Checkpoints of a training run (Orbax)."""

import logging
from pathlib import Path

import grain
import jax
from orbax.checkpoint import v1 as ocp

from weaksam_jax.engine.step import TrainState
from weaksam_jax.errors import BadInput

# Orbax reports every save at WARNING, and at ERROR the traces of what it raises here anyway.
logging.getLogger("absl").setLevel(logging.CRITICAL)

CHECKPOINTS = "checkpoints"  # their folder in that of a training


class Checkpoints:
    """The checkpoints `<folder>/<step>` of one training run; the two latest are kept.

    A checkpoint holds the state, the position of the Grain iterator and the losses of the steps not
    yet logged. All of it is the same in every process, so another number of devices or processes
    may go on with it. It is written under a temporary name and renamed, so a killed process leaves
    whole checkpoints only; what is left of an unfinished one is removed here.
    """

    def __init__(self, folder: str | Path):
        self._checkpointer = ocp.training.Checkpointer(
            Path(folder).absolute(),
            preservation_policy=ocp.training.preservation_policies.LatestN(2),
            cleanup_tmp_directories=True,
        )

    def save(
        self, state: TrainState, batches: grain.DatasetIterator, pending: list[dict[str, float]]
    ) -> None:
        """Saves in the background; `batches` must stand right after the batch of the last step."""
        self._checkpointer.save_checkpointables_async(
            int(state.step),
            {"state": state},
            # A copy of `pending`: the caller goes on.
            custom_metadata={"pending": list(pending), "batches": batches.get_state()},
            force=True,
        )

    def restore(
        self, state: TrainState, batches: grain.DatasetIterator
    ) -> tuple[TrainState, list[dict[str, float]]]:
        """The latest (state, pending), with `batches` moved on in place; the arguments when none.

        Raises `BadInput` when the checkpoint is damaged or belongs to other settings.
        """
        latest = self._checkpointer.latest
        if latest is None:
            return state, []
        abstract = jax.tree.map(ocp.arrays.to_shape_dtype_struct, state)
        try:
            loaded = self._checkpointer.load_checkpointables(latest.step, {"state": abstract})
            metadata = self._checkpointer.checkpointables_metadata(latest.step).custom_metadata
            batches.set_state(metadata["batches"])
            return loaded["state"], metadata["pending"]
        except Exception as error:
            path = Path(self._checkpointer.directory) / str(latest.step)
            reason = str(error).strip().splitlines()[0][:200] if str(error) else repr(error)
            problem = f"is damaged or of other settings ({reason})"
            hint = "delete this folder: the same command resumes from the checkpoint before it"
            raise BadInput(path, problem, hint) from error

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._checkpointer.close()
