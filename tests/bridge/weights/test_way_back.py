"""Detectors that a published layout would make another network of, or that have seen what it cannot
say."""

import json

import pytest
import torch
from dino_files import mmdet
from small_detector import small_arrays

import bridge.convert
from bridge.weights.faster_rcnn_torchvision import TORCHVISION
from bridge.weights.kinds import convert, convert_back
from bridge.weights.r50_fpn import to_theirs
from experiments.bench.torch_mil import random_state
from weaksam_jax.cli import entry_point
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays, write_arrays

SMALL = {"channels": (2, 4, 8, 16, 16), "width": 7, "classes": 3}
STATES = {
    "wetectron": lambda: random_state("wetectron", **SMALL),
    "dino_mmdet": lambda: to_torch(mmdet()),
    "faster_rcnn_torchvision": lambda: to_torch(to_theirs(small_arrays(), TORCHVISION)),
}


def to_torch(arrays):
    return {name: torch.tensor(value) for name, value in arrays.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{kind: (arrays, metadata)} of a small detector of each kind."""
    folder, found = tmp_path_factory.mktemp("files"), {}
    for kind, state in STATES.items():
        torch.save(state(), folder / f"{kind}.pth")
        found[kind] = read_arrays(convert(kind, folder / "a.safetensors", folder / f"{kind}.pth"))
    return found


def changed(metadata, **model):
    """The metadata with other values in the model's config (None: not stated)."""
    config = json.loads(metadata["config"])
    config["model"] |= model
    config["model"] = {k: v for k, v in config["model"].items() if v is not None}
    return metadata | {"config": json.dumps(config)}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("dino_mmdet", "backbone", "resnet50_msra"),
        ("dino_mmdet", "heads", 4),
        ("dino_mmdet", "neck_groups", 16),
        ("dino_mmdet", "position_temperature", 10000.0),
        ("dino_mmdet", "prediction_epsilon", 1e-3),
        ("dino_mmdet", "prediction_epsilon", None),
        ("faster_rcnn_torchvision", "backbone", "resnet50_msra"),
        ("faster_rcnn_torchvision", "aligned", True),
        ("faster_rcnn_torchvision", "anchor_ratios", [1.0, 2.0, 3.0]),
        ("wetectron", "pooling", "align"),
        ("wetectron", "pixels", "torchvision"),
    ],
)
def test_what_no_array_tells_must_be_what_the_layout_means(files, tmp_path, kind, name, value):
    arrays, metadata = files[kind]
    source, back = tmp_path / "a.safetensors", tmp_path / "b.pth"
    write_arrays(source, arrays, metadata)
    assert convert_back(kind, back, source).stat().st_size
    write_arrays(source, arrays, changed(metadata, **{name: value}))
    back.unlink()
    problem = rf"a\.safetensors: has model\.{name} .*, where {kind} means"
    with pytest.raises(BadInput, match=problem):
        convert_back(kind, back, source)
    assert not back.exists()


def test_a_file_that_does_not_say_what_it_is_does_not_go_back(files, tmp_path):
    arrays, metadata = files["dino_mmdet"]
    for told in ({}, metadata | {"detector": "mil"}):
        write_arrays(tmp_path / "a.safetensors", arrays, told)
        with pytest.raises(BadInput, match="does not say that it is a dino"):
            convert_back("dino_mmdet", tmp_path / "b.pth", tmp_path / "a.safetensors")


def test_what_was_seen_is_not_forgotten(files, tmp_path, capsys):
    """A checkpoint comes back as all of its kind, so it must not have seen more than they have."""
    arrays, metadata = files["wetectron"]
    source, back = tmp_path / "a.safetensors", tmp_path / "b.pth"
    for seen in ("tags,boxes", "masks", "unknown"):
        write_arrays(source, arrays, metadata | {"supervision": seen})
        command = ["wetectron", "--from", str(source), "--to", str(back)]
        assert entry_point(bridge.convert.main, command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        told = seen.replace(",", ", ")
        assert f"has seen {told}, and a file of wetectron would come back as tags" in line
    assert not back.exists()
    arrays, metadata = files["dino_mmdet"]
    for seen in ("tags", "none", "boxes"):  # comes back as boxes, unless --supervision says less
        write_arrays(source, arrays, metadata | {"supervision": seen})
        convert_back("dino_mmdet", back, source)
    write_arrays(source, arrays, metadata | {"supervision": "boxes,masks"})
    with pytest.raises(BadInput, match="would come back as boxes"):
        convert_back("dino_mmdet", back, source)
