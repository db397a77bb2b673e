"""The folder of the VOC server's files: what is there of another's stays as it is."""

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path

from weaksam_jax.data.detections import Results
from weaksam_jax.data.records import TagSplit, TruthSplit
from weaksam_jax.locks import check_made_by, holder, locked

_COMMAND = "voc_files"


def write_server_files(found: Results, split: TagSplit | TruthSplit, folder: Path) -> list[Path]:
    """`weaksam_jax.evaluate.write_comp4` into a folder that a command of ours made, or that has no
    such files of the split yet; else `BadInput`."""
    from weaksam_jax.evaluate import write_comp4

    with _held(split, folder):
        return write_comp4(found, split, folder)


def check_server_folder(split: TagSplit, folder: Path) -> None:
    """The same refusals, before the detection."""
    from weaksam_jax.evaluate import comp4_names

    comp4_names(split)
    if not holder(folder):
        check_made_by(folder, _COMMAND, _there(split, folder))


def _held(split: TagSplit, folder: Path) -> AbstractContextManager:
    if holder(folder).get("made_by", _COMMAND) != _COMMAND:
        return contextlib.nullcontext()  # the folder of another command of ours
    return locked(folder, _COMMAND, _there(split, folder))


def _there(split: TagSplit, folder: Path) -> list[str]:
    """Such files of the split that lie in the folder."""
    start = f"comp4_det_{split.split}_"
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted(one.name for one in there if one.name.startswith(start))
