"""PyTorch's files: every kind of tensor as PyTorch reads it, and what a file only claims."""

import argparse
import io
import os
import pickle
import struct
import warnings
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from hostile_pickles import REFUSED, value
from torch import nn

from bridge.weights.checkpoints import read_checkpoint, read_tensors
from bridge.weights.torchscript import torchscript_tensors
from weaksam_jax.errors import BadInput

warnings.filterwarnings("ignore", "Sparse.*beta state")
W = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
KINDS = {
    "plain": W,
    "parameter": nn.Parameter(W),
    "frozen parameter": nn.Parameter(W, requires_grad=False),
    "needs a gradient": W.clone().requires_grad_(),
    "half": W.half(),
    "bfloat16": W.bfloat16(),
    "double": W.double(),
    "parameter of bfloat16": nn.Parameter(W.bfloat16()),
    "transposed": W.T,
    "part": W[1:, ::2],
    "one value many times": W[:1, :1].expand(5, 7),
    "no dimension": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "sparse": W.relu().to_sparse(),
    "hybrid": W.relu().to_sparse(1),
    "csr": W.relu().to_sparse_csr(),
    "csc": W.relu().to_sparse_csc(),
    "bsr": W.relu().to_sparse_bsr((2, 3)),
    "bsc": W.relu().to_sparse_bsc((2, 3)),
    "sparse bfloat16": W.relu().bfloat16().to_sparse(),
    "int64": torch.arange(5),
    "int8": torch.arange(5, dtype=torch.int8),
    "uint8": torch.arange(5, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
}
FORMS = {"zip": {}, "in a row": {"_use_new_zipfile_serialization": False}}


def dense(tensor):
    tensor = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    return tensor.float() if tensor.is_floating_point() else tensor


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_every_kind(tmp_path, form, kind):
    torch.save(
        {"epoch": 1, "state_dict": {"module.a": KINDS[kind]}}, tmp_path / "a.pth", **FORMS[form]
    )
    found = read_checkpoint(tmp_path / "a.pth")
    expected = dense(KINDS[kind])
    assert list(found) == ["a"] and not found["a"].requires_grad
    assert found["a"].dtype == expected.dtype and torch.equal(found["a"], expected)


def with_attribute(tensor):
    tensor.no_weight_decay = True
    return tensor


@pytest.mark.parametrize("form", FORMS)
def test_what_lies_beside_the_weights(tmp_path, form):
    shared = torch.arange(12.0)
    content = OrderedDict(
        model=OrderedDict(
            a=shared[:6].view(2, 3),
            b=shared[6:],
            c=nn.Parameter(with_attribute(shared.clone())),
            d=with_attribute(nn.Parameter(shared.clone())),
            text="no tensor",
        ),
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]},
        scheduler={"milestones": Counter({3: 1}), "best": np.float64(0.5)},
        args=argparse.Namespace(lr=0.1, out="somewhere"),
        kinds=(torch.float32, torch.Size([1]), torch.device("cpu")),
    )
    torch.save(content, tmp_path / "a.pth", **FORMS[form])
    found = read_checkpoint(tmp_path / "a.pth")
    assert found.keys() == {"a", "b", "c", "d"}
    assert all(torch.equal(found[name], content["model"][name].detach()) for name in found)


def test_the_state_of_a_network_is_read_as_pytorch_reads_it(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2).half())
    torch.save(net.state_dict(), tmp_path / "a.pth")
    found, expected = (
        read_checkpoint(tmp_path / "a.pth"),
        torch.load(tmp_path / "a.pth", weights_only=True),
    )
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], dense(expected[name])) for name in found)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (torch.zeros(3, dtype=torch.complex64), r"a holds torch\.complex64, no real numbers"),
        (torch.zeros(3, dtype=torch.complex64).conj(), "tensor of another kind"),
        (torch.zeros(3, device="meta"), "it asks for torch._utils._rebuild_meta_tensor"),
        (nn.Linear(2, 2), r"it asks for torch\.nn\.modules\.linear\.Linear"),
        (torch.zeros((1,) * 40), "a: its size is impossible"),
        ("text", "it holds no named tensors"),
    ],
)
def test_other_tensors_are_refused(tmp_path, kind, told):
    torch.save({"a": kind}, tmp_path / "a.pth")
    with pytest.raises(BadInput, match=rf"a\.pth: is no whole PyTorch checkpoint \(.*{told}"):
        read_checkpoint(tmp_path / "a.pth")


# What a file claims: tensors by hand


def pickled(offset=0, sizes=(2, 2), strides=(2, 1), count=4, kind="FloatStorage", key="0"):
    """data.pkl of {"a": a tensor in storage 0}."""
    storage = b"(" + value("storage") + b"ctorch\n" + kind.encode() + b"\n" + value(key)
    storage += value("cpu") + value(count) + b"tQ"
    rest = value(offset) + value(sizes) + value(strides) + b"\x89N"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"
    return b"\x80\x02}" + value("a") + call + b"s."


def zipped(path, content, data=bytes(range(16)), compression=zipfile.ZIP_STORED, **more):
    entries = {"x/data.pkl": content, "x/data/0": data, "x/byteorder": b"little"} | more
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, one in entries.items():
            archive.writestr(name, one)
    return path


CLAIMS = {
    "reaches beyond its storage": [
        {"offset": 1}, {"strides": (4, 1)}, {"sizes": (1 << 40,), "strides": (1,)},
        {"sizes": (2, 3)}, {"offset": 1 << 61},
    ],
    "its offset is impossible": [{"offset": -1}, {"offset": 0.0}, {"offset": True}],
    "its size is impossible": [
        {"sizes": (-2, 2)}, {"sizes": [2, 2]}, {"sizes": (1 << 70, 0)}, {"sizes": (1,) * 40},
    ],
    "its stride is impossible": [{"strides": (-2, 1)}, {"strides": (2.0, 1)}],
    "another number of dimensions": [{"strides": (2,)}, {"sizes": ()}],
    "would take over 16 times its size": [
        {"sizes": (1 << 40,), "strides": (0,)}, {"sizes": (1 << 31,) * 3, "strides": (0,) * 3},
    ],
    r"16 bytes are there for \d+ torch.float32": [{"count": 5}, {"count": 1 << 40}],
    r"data/\.\./\.\./etc/passwd is missing": [{"key": "../../etc/passwd"}],
    r"it asks for torch\.QInt8Storage": [{"kind": "QInt8Storage"}],
}  # fmt: skip


@pytest.mark.parametrize("told", CLAIMS)
def test_a_tensor_that_is_not_there(tmp_path, told):
    assert read_checkpoint(zipped(tmp_path / "ok.pth", pickled()))["a"].shape == (2, 2)
    for claim in CLAIMS[told]:
        with pytest.raises(BadInput, match=rf"a\.pth: is no whole.*{told}") as caught:
            read_checkpoint(zipped(tmp_path / "a.pth", pickled(**claim)))
        assert "(a: " in str(caught.value) or "it asks for" in told


def test_pickles_that_are_refused_are_refused_in_archives(tmp_path):
    for what in (
        "deep lists",
        "deep dicts",
        "2**60 values",
        "call",
        "huge item",
        "length b'\\x8e'",
    ):
        path = zipped(tmp_path / "a.pth", REFUSED[what])
        with pytest.raises(BadInput, match=r"a\.pth: is no whole PyTorch checkpoint"):
            read_checkpoint(path)
        zipped(path, REFUSED[what], **{"x/constants.pkl": b""})
        with pytest.raises(BadInput, match=r"a\.pth: is no whole TorchScript archive"):
            torchscript_tensors(path)


def test_archives_that_are_more_than_they_should(tmp_path):
    path = tmp_path / "a.pth"
    bomb = {"data": bytes(1 << 28), "compression": zipfile.ZIP_DEFLATED}
    cases = {
        "a: data/0 unpacks to over 16 times": lambda: zipped(path, pickled(count=1 << 26), **bomb),
        "data.pkl unpacks to over": lambda: zipped(
            path, b"N" * (1 << 28), compression=zipfile.ZIP_DEFLATED
        ),
        "unknown compression": lambda: zipped(path, pickled(), compression=zipfile.ZIP_LZMA),
        "another byte order": lambda: zipped(path, pickled(), **{"x/byteorder": b"big"}),
        "2 files data.pkl": lambda: zipped(path, pickled(), **{"y/data.pkl": b"N."}),
        "0 files data.pkl": lambda: zipfile.ZipFile(path, "w").writestr("a", b"a"),
    }
    for told, write in cases.items():
        write()
        with pytest.raises(BadInput, match=told):
            read_checkpoint(path)
    zipped(path, pickled(), compression=zipfile.ZIP_DEFLATED)
    assert read_checkpoint(path)["a"].shape == (2, 2)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x/data.pkl", b"N.")
    with pytest.raises(BadInput, match=r"it has x/data\.pkl twice"):
        read_checkpoint(path)


def test_a_name_twice(tmp_path):
    torch.save({"module.a": W, "a": W}, tmp_path / "a.pth")
    with pytest.raises(BadInput, match=r"it holds a twice, with module\. and without"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("form", FORMS)
def test_files_cut_or_changed_anywhere(tmp_path, form):
    whole, path = io.BytesIO(), tmp_path / "a.pth"
    torch.save({"a": W, "b": W.relu().to_sparse()}, whole, **FORMS[form])
    data = whole.getvalue()
    expected = {"a": W, "b": W.relu()}
    for place in range(0, len(data), 23):
        path.write_bytes(data[:place])
        with pytest.raises(BadInput, match=r"a\.pth: is no whole PyTorch checkpoint"):
            read_checkpoint(path)
        flipped = bytes([data[place] ^ 4])
        path.write_bytes(data[:place] + flipped + data[place + 1 :])
        try:  # a letter of a name or the sum of a zip's part may change
            found = read_checkpoint(path)
        except BadInput:
            continue
        if form == "zip":
            assert all(
                torch.equal(a, b) for a, b in zip(found.values(), expected.values(), strict=True)
            )


def test_safetensors(tmp_path):
    def written(name, header, data=b"", length=None):
        length = len(header) if length is None else length
        (tmp_path / name).write_bytes(struct.pack("<Q", length) + header + data)
        return tmp_path / name

    def one(kind, shape, end, name="a"):
        return f'"{name}":{{"dtype":"{kind}","shape":{shape},"data_offsets":[0,{end}]}}'

    for kind, numbers in (("BF16", W.bfloat16()), ("F16", W.half()), ("F64", W.double())):
        data = numbers.contiguous().view(torch.uint8).numpy().tobytes()
        header = ("{" + one(kind, [4, 6], len(data)) + "}").encode()
        found, _ = read_tensors(written("a.safetensors", header, data))
        assert found["a"].dtype == torch.float32 and torch.equal(found["a"], numbers.float())
    twice = "{" + one("F32", [1], 4) + "," + one("F32", [1], 4) + "}"
    overlap = twice.replace('"a"', '"b"', 1)
    cases = {
        "it has 'a' twice": (twice.encode(), bytes(4)),
        "invalid offset": (overlap.encode(), bytes(4)),
        "header too large": (b"{}", b"", 1 << 63),
        "invalid JSON": (b"[" * 10**6,),
        "recursion limit": (b'{"a":' * 10**6,),
        "no real numbers": (("{" + one("C64", [1], 8) + "}").encode(), bytes(8)),
        "a has 100 dimensions": (("{" + one("F32", [1] * 100, 4) + "}").encode(), bytes(4)),
        "is no whole safetensors file": (b"",),
    }
    for told, parts in cases.items():
        with pytest.raises(BadInput, match=f"{told}"):
            read_tensors(written("b.safetensors", *parts))
    os.mkfifo(tmp_path / "c.safetensors")
    with pytest.raises(BadInput, match=r"c\.safetensors: is a pipe or device"):
        read_tensors(tmp_path / "c.safetensors")


def test_in_a_row_of_another_kind(tmp_path):
    path = tmp_path / "a.pth"
    for content in (
        b"\x80\x02N.",
        pickle.dumps({"a": 1}, 2),
        b"\x80\x02.",
        b"hello",
        b"./\0" * 300,
    ):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"a\.pth: is no whole PyTorch checkpoint \(it"):
            read_checkpoint(path)
