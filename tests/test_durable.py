"""What is on the disk when: bytes before the name, the name before anything that relies on it."""

import os

import numpy as np
import pytest

from weaksam_jax import files, interrupts
from weaksam_jax.data import store
from weaksam_jax.errors import BadInput
from weaksam_jax.files import atomic_path, sync_disk, write_arrays, write_json


@pytest.fixture
def done(monkeypatch):
    """Names of what was synced and renamed, in order."""
    calls = []

    def note(word, original):
        def call(*arguments, **more):
            calls.append(word)
            return original(*arguments, **more)

        return call

    monkeypatch.setattr(os, "fsync", note("sync", os.fsync))
    monkeypatch.setattr(os, "replace", note("rename", os.replace))
    return calls


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, done):
    write_json(tmp_path / "a.json", {})
    assert done == ["sync", "rename", "sync"]


def test_one_of_many_files_is_not_waited_for(tmp_path, done):
    write_arrays(tmp_path / "a.safetensors", {"a": np.zeros(3)}, durable=False)
    assert done == ["rename"]


def test_a_manifest_comes_after_everything_that_it_lists(tmp_path, done, monkeypatch):
    monkeypatch.setattr(store, "sync_disk", lambda folder: done.append(f"disk of {folder.name}"))
    store.write_manifest(tmp_path, "train", [1], {})
    assert done == ["disk of train", "sync", "rename", "sync"]


def test_the_disk_is_synced_where_python_has_no_way(tmp_path, monkeypatch):
    sync_disk(tmp_path)
    calls = []
    monkeypatch.setattr(files.ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(os, "sync", lambda: calls.append("sync"))
    sync_disk(tmp_path)
    assert calls == ["sync"]


def test_a_folder_that_goes_while_a_file_is_written(tmp_path):
    folder = tmp_path / "run"
    with (
        pytest.raises(BadInput, match="run: was removed while it was used"),
        atomic_path(folder / "a.json") as path,
    ):
        path.touch()
        path.unlink()
        folder.rmdir()
    assert not interrupts.unfinished


def test_a_file_that_is_not_finished_is_known(tmp_path):
    with atomic_path(tmp_path / "a.json") as path:
        path.touch()
        assert interrupts.unfinished == {path}
    assert not interrupts.unfinished
