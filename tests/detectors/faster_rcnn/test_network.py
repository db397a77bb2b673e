"""Stored weights for retraining: what a file must state and hold before a detector takes it."""

import functools
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from bridge.weights.faster_rcnn import convert_resnet50

from bridge.weights.r50_fpn import to_theirs
from bridge.weights.resnet50 import RESNET_TORCHVISION
from experiments.pipeline import stages
from experiments.pipeline.config import mini
from experiments.pipeline.options import RoadOptions
from weaksam_jax.backbones.resnet import ResNet50
from weaksam_jax.detectors.faster_rcnn import network
from weaksam_jax.detectors.faster_rcnn.recipes import voc07
from weaksam_jax.engine.checkpoint import save_params
from weaksam_jax.errors import BadInput
from weaksam_jax.files import read_arrays, write_arrays

WIDTH = 2


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(network, "ResNet50", functools.partial(ResNet50, WIDTH))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{backbone: what bridge.convert makes of its ImageNet weights}, narrow ones."""
    folder = tmp_path_factory.mktemp("weights")
    model, image = ResNet50(WIDTH), np.zeros((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    arrays = {"/".join(e.key for e in path): np.ones(x.shape, np.float32) for path, x in leaves}
    theirs = to_theirs(arrays, RESNET_TORCHVISION)
    torch.save({n: torch.tensor(x) for n, x in theirs.items()}, folder / "resnet50.pth")
    convert_resnet50(folder / "resnet50.safetensors", folder / "resnet50.pth")
    write_arrays(folder / "msra.safetensors", arrays, {"kind": "resnet50_msra", "pixels": "msra"})
    return {
        "resnet50": folder / "resnet50.safetensors",
        "resnet50_msra": folder / "msra.safetensors",
    }


def start(run, backbone, path):
    settings = replace(voc07(), backbone=backbone, init=None if path is None else str(path))
    return stages.retrain_start(run, settings)


def test_weights_of_the_backbones_own_pixels_are_taken(files, tmp_path):
    for backbone, path in files.items():
        found = start(tmp_path, backbone, path)
        arrays, _ = read_arrays(path)
        np.testing.assert_array_equal(
            found["res3"]["block0"]["conv2"]["conv"]["kernel"],
            arrays["res3/block0/conv2/conv/kernel"],
        )


@pytest.mark.parametrize(
    ("backbone", "other", "pixels"),
    [
        ("resnet50_msra", "resnet50", "torchvision"),
        ("resnet50", "resnet50_msra", "msra"),
        ("lite0", "resnet50", "torchvision"),
    ],
)
def test_weights_of_other_pixels_are_refused(files, tmp_path, backbone, other, pixels):
    """Both ResNets have the same names and shapes: only the file's own word tells them apart."""
    with pytest.raises(BadInput) as caught:
        start(tmp_path, backbone, files[other])
    error = caught.value
    assert error.path == str(files[other]) and f"was trained on {pixels} pixels" in error.problem
    assert f"set retrain.backbone to {other}" in error.hint


def test_other_pixels_are_noticed_before_the_first_stage(files, tmp_path):
    retrain = replace(voc07(), init=str(files["resnet50"]))
    options = RoadOptions(
        data="mini", out=tmp_path / "run", settings=replace(mini(), retrain=retrain)
    )
    with pytest.raises(BadInput, match="torchvision pixels"):
        stages.travel(options)
    assert not (tmp_path / "run").exists()


def test_weights_of_another_shape_are_refused_with_their_file(files, tmp_path):
    arrays, metadata = read_arrays(files["resnet50_msra"])
    path = tmp_path / "bad.safetensors"
    few = {name: value for name, value in arrays.items() if name != "stem/norm/bias"}
    for bad in (few, arrays | {"stem/norm/bias": np.ones(3)}):
        write_arrays(path, bad, metadata)
        with pytest.raises(BadInput, match=r"bad\.safetensors: stem/norm/bias is missing or of"):
            start(tmp_path, "resnet50_msra", path)
    with pytest.raises(BadInput, match=r"gone\.safetensors: does not exist; check the path"):
        start(tmp_path, "resnet50", tmp_path / "gone.safetensors")


def test_the_mil_detectors_backbone_is_the_start_without_init(files, tmp_path):
    backbone = start(tmp_path, "resnet50", files["resnet50"])
    path = tmp_path / "wsod" / "params.safetensors"
    save_params(path, {"backbone": backbone, "cls": {"bias": np.zeros(2)}})
    jax.tree.map(np.testing.assert_array_equal, start(tmp_path, "resnet50", None), backbone)
    save_params(path, {"cls": {"bias": np.zeros(2)}})
    assert start(tmp_path, "resnet50", None) is None


def test_a_detectors_file_says_how_it_was_trained():
    trained = replace(voc07(), backbone="resnet50", aligned=False, round_anchors=True)
    metadata = network.detector_metadata(trained, ("cat", "dog"))
    assert json.loads(metadata["classes"]) == ["cat", "dog"]
    assert network.as_trained(voc07(), metadata) == trained
    assert network.as_trained(trained, {}) == trained
