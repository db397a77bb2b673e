"""Folders of work that resumes: each says in itself whose it is.

`<folder>/.stage.json` holds a magic word and a key, the fingerprint of everything that decides the
work. Work of the same key goes on; that of another key is deleted; a folder with content but
without the file was made by nobody here and is left alone.
"""

import shutil
from pathlib import Path

from weaksam_jax.errors import BadFile, BadInput
from weaksam_jax.files import make_folder, read_json, write_json

MARK = ".stage.json"
_MAGIC = "weaksam-jax work folder"
_UNFINISHED = ""  # the key of no work: the folder is being emptied


def key_of(folder: Path) -> str | None:
    """The key of the work in a folder; None where there is none (missing or empty).

    Raises `BadInput` for a folder (or file) that no run made, and `BadFile` when its mark is
    damaged.
    """
    hint = "give another --out, or move the folder away"
    if (folder / MARK).is_file():
        return _read_mark(folder / MARK, hint)
    if folder.is_dir() and not list(_content(folder)):
        return None
    if folder.exists() or folder.is_symlink():
        raise BadInput(folder, "was not made by a run", hint)
    return None


def _read_mark(path: Path, hint: str) -> str:
    try:
        mark = read_json(path)
    except BadFile as error:
        raise BadFile(path, error.problem, hint) from error
    if (
        isinstance(mark, dict)
        and mark.get("made_by") == _MAGIC
        and isinstance(mark.get("key"), str)
    ):
        return mark["key"]
    raise BadFile(path, "is no mark of a run", hint)


def open_folder(folder: Path, key: str) -> bool:
    """Makes a folder ready for the work of this key: as that work left it, else empty. Returns
    whether old work was deleted. Raises as `key_of`, and then has changed nothing."""
    found = key_of(folder)
    if found is not None and found != key:
        _write(folder, _UNFINISHED)  # killed from here on, the next call goes on deleting
        for path in _content(folder):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if found != key:
        make_folder(folder)
        _write(folder, key)
    return found not in (None, key)


def _write(folder: Path, key: str) -> None:
    write_json(folder / MARK, {"made_by": _MAGIC, "key": key})


def _content(folder: Path):
    """What lies in a folder but its mark, and what a killed process left of writing it."""
    for path in sorted(folder.iterdir()):
        if path.name != MARK and not (path.name.startswith(f".{MARK}.") and path.suffix == ".tmp"):
            yield path
