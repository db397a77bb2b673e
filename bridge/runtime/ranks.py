"""Which part of a job, and which GPU, is this process's among several."""

from collections.abc import Mapping

from weaksam_jax.errors import BadInput


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n" with 0 <= i < n; `BadInput` otherwise."""
    parts = text.split("/")
    if len(parts) == 2 and all(part.isdecimal() for part in parts):
        index, count = int(parts[0]), int(parts[1])
        if index < count:
            return index, count
    raise BadInput(f"--shard {text}", "is no shard", "give i/n with 0 <= i < n, e.g. 0/4")


def shard_of_process(environment: Mapping[str, str]) -> tuple[int, int]:
    """(i, n) of this process as torchrun or Slurm numbers it; (0, 1) under neither.

    Raises `BadInput` when a variable is missing or no number.
    """
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        found = environment.get(rank), environment.get(size)
        if found == (None, None):
            continue
        try:
            return parse_shard("/".join(str(value) for value in found))
        except BadInput as error:
            problem = f"are {found[0]} and {found[1]}, which is no shard"
            raise BadInput(f"{rank} and {size}", problem, "give --shard i/n") from error
    return 0, 1


def gpu_of_process(environment: Mapping[str, str], gpus: int) -> int:
    """Which of the visible GPUs is this process's, by its number on its machine."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if environment.get(name, "").isdecimal():
            return int(environment[name]) % gpus
    return 0
