"""TorchScript archives: the tensors of `state_dict()`, and nothing that is not a tensor."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from bridge.weights.torchscript import is_torchscript, torchscript_tensors
from weaksam_jax.errors import BadInput

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def network() -> nn.Module:
    """Nested, of several types, with a strided view among the buffers."""
    inner = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(2, 3, 3).half(), nn.BatchNorm2d(3))
    outer = nn.Sequential(inner, nn.Embedding(5, 2).double())
    outer.register_buffer("flags", torch.tensor([True, False]))
    outer.register_buffer("rows", torch.arange(12).reshape(3, 4)[1:, ::2])
    return outer


def test_tensors_are_those_of_the_state_dict(tmp_path):
    plain = network()
    torch.jit.script(plain).save(str(tmp_path / "net.pt"))
    torch.save(plain.state_dict(), tmp_path / "net.pth")
    assert is_torchscript(tmp_path / "net.pt")
    assert not is_torchscript(tmp_path / "net.pth") and not is_torchscript(tmp_path / "none.pt")
    found, expected = torchscript_tensors(tmp_path / "net.pt"), plain.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def archive_of(content: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/constants.pkl", b"")
        archive.writestr("archive/data.pkl", content)


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_else_is_unpickled(tmp_path):
    archive_of(pickle.dumps(Evil(tmp_path / "written"), 2), tmp_path / "evil.pt")
    with pytest.raises(BadInput, match=r"evil\.pt.*it asks for io\.open"):
        torchscript_tensors(tmp_path / "evil.pt")
    assert not (tmp_path / "written").exists()


def test_damaged_archives(tmp_path):
    torch.jit.script(network()).save(str(tmp_path / "net.pt"))
    with zipfile.ZipFile(tmp_path / "net.pt") as archive:
        data = next(archive.read(n) for n in archive.namelist() if n.endswith("/data.pkl"))
    archive_of(data, tmp_path / "no_storages.pt")
    archive_of(data[: len(data) // 2], tmp_path / "half.pt")
    archive_of(pickle.dumps([1, 2], 2), tmp_path / "list.pt")
    for name in ("no_storages", "half", "list"):
        with pytest.raises(BadInput, match=rf"{name}\.pt: is no whole TorchScript archive"):
            torchscript_tensors(tmp_path / f"{name}.pt")
