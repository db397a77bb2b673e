"""Compiled programs are kept on disk."""

import os
from pathlib import Path

import jax

FOLDER = "~/.cache/weaksam-jax"
_SECONDS = 0.1  # what compiles faster is not worth a file


def enable_compilation_cache() -> None:
    """Keeps compiled programs in `~/.cache/weaksam-jax`, so that the next process, also one that
    goes on after a kill, does not compile them again.

    `JAX_COMPILATION_CACHE_DIR` names another folder; set but empty it switches this off (as
    `JAX_ENABLE_COMPILATION_CACHE=false` does). The folder is trusted (it holds machine code), may
    be shared between hosts (process 0 writes) and is never emptied: delete it at will.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder == "":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if folder is None:
        jax.config.update("jax_compilation_cache_dir", str(Path(FOLDER).expanduser()))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)
