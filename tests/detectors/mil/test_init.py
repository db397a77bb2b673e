"""What the MIL detector starts from: fresh weights, ImageNet's, or a whole detector."""

import dataclasses

import flax.traverse_util
import jax
import numpy as np
import pytest
from tiny_mil import TINY, write_random

from weaksam_jax.data.datasets import open_tags
from weaksam_jax.data.mini_set import write_mini
from weaksam_jax.detectors.mil.config import WsodSettings
from weaksam_jax.detectors.mil.network import build_model, load_init
from weaksam_jax.detectors.mil.train import train_wsod
from weaksam_jax.engine.mesh import data_mesh
from weaksam_jax.errors import BadInput
from weaksam_jax.files import write_arrays

VGG = WsodSettings(backbone="vgg16", init="weights.safetensors")
IMAGENET = {"kind": "vgg16", "channels": "bgr"}


def fresh():
    """Nested zeros in the place of a small detector's parameters."""
    layers = ("backbone/conv1_1", "fc6", "fc7", "cls", "deltas_0", "tags", "drop_block/conv1")
    flat = {f"{name}/kernel": np.zeros((2, 3), np.float32) for name in layers}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def start(tmp_path, arrays, metadata, **changes):
    """The flat parameters that `load_init` makes of a file with these arrays."""
    write_arrays(tmp_path / "weights.safetensors", arrays, metadata)
    settings = dataclasses.replace(VGG, init=str(tmp_path / "weights.safetensors"), **changes)
    return flax.traverse_util.flatten_dict(load_init(settings, fresh()), sep="/")


def ones(*layers):
    return {f"{name}/kernel": np.ones((2, 3), np.float32) for name in layers}


def test_without_a_file():
    with pytest.raises(BadInput, match=r"vgg16.*bridge\.convert.*scratch"):
        load_init(dataclasses.replace(VGG, init=None), fresh())
    given = fresh()
    assert load_init(dataclasses.replace(VGG, init="scratch"), given) is given
    assert load_init(WsodSettings(), given) is given
    with pytest.raises(BadInput, match="does not exist"):
        load_init(dataclasses.replace(VGG, init="nowhere.safetensors"), given)


def test_imagenet_weights_leave_the_heads_fresh(tmp_path):
    arrays = ones("backbone/conv1_1", "fc6", "fc7")
    found = start(tmp_path, arrays, IMAGENET)
    assert {name for name, value in found.items() if np.asarray(value).all()} == arrays.keys()
    assert len(found) == 7
    del arrays["fc7/kernel"]
    with pytest.raises(BadInput, match="has no tensor fc7/kernel"):
        start(tmp_path, arrays, IMAGENET)


def test_a_whole_detector_may_lack_class_maps_and_drop_block_alone(tmp_path):
    whole = ones("backbone/conv1_1", "fc6", "fc7", "cls", "deltas_0")
    for metadata in ({}, {"kind": "wetectron", "rectify_last": "False"}):
        found = start(tmp_path, whole, metadata)
        assert {k for k, v in found.items() if np.asarray(v).all()} == whole.keys()
        fewer = {name: value for name, value in whole.items() if name != "cls/kernel"}
        with pytest.raises(BadInput, match="has no tensor cls/kernel"):
            start(tmp_path, fewer, metadata)
    with pytest.raises(BadInput, match="unknown tensor strange/kernel"):
        start(tmp_path, whole | ones("strange"), {})
    with pytest.raises(BadInput, match=r"fc6/kernel has the shape \(3, 3\), not \(2, 3\)"):
        start(tmp_path, whole | {"fc6/kernel": np.ones((3, 3), np.float32)}, {})


def test_what_shapes_do_not_tell_is_checked(tmp_path):
    arrays = ones("backbone/conv1_1", "fc6", "fc7")
    torchvision = {"kind": "vgg16", "channels": "rgb"}
    with pytest.raises(BadInput, match="RGB"):
        start(tmp_path, arrays, torchvision)
    assert start(tmp_path, arrays, torchvision, pixels="torchvision")
    assert start(tmp_path, arrays, IMAGENET, pixels="torchvision")  # OICR's release for COCO
    whole = arrays | ones("cls", "deltas_0")
    with pytest.raises(BadInput, match="rectify_last to True"):
        start(tmp_path, whole, {"rectify_last": "True"})
    assert start(tmp_path, whole, {"rectify_last": "True"}, rectify_last=True)


def test_training_starts_from_the_file_and_leaves_frozen_blocks_alone(tmp_path):
    data = write_mini(tmp_path / "data", 0, 2, 1, progress=False)
    split, rng = open_tags(data, "trainval"), np.random.default_rng(0)
    for record in split.records:
        write_random(tmp_path / "proposals", split.split, record, rng)
    settings = dataclasses.replace(
        TINY, backbone="vgg16", init=str(tmp_path / "init.safetensors"), pooling="max",
        evidence=0.0, tag_weight=0.0, pretrain_steps=0, steps=2, weight_decay=0.5, rate=1e-2,
    )  # fmt: skip
    classes = len(split.classes)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    given = np.ones((1, 8, 8), bool), np.zeros((1, 3, 4)), np.zeros((1, 3, classes))
    model = build_model(settings, classes)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, *given)["params"]
    kept = {
        name: rng.normal(0, 0.02, leaf.shape).astype(np.float32)
        for name, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items()
    }
    write_arrays(tmp_path / "init.safetensors", kept)
    mesh = data_mesh(jax.devices()[:1])
    params = train_wsod(split, tmp_path / "proposals", settings, tmp_path / "wsod", mesh, 0)
    found = flax.traverse_util.flatten_dict(params, sep="/")
    assert found.keys() == kept.keys() and "tags/kernel" not in found
    parts = ("kernel", "bias")
    frozen = {f"backbone/conv{b}_{k}/{p}" for b in (1, 2) for k in (1, 2) for p in parts}
    assert {name for name in found if np.array_equal(found[name], kept[name])} == frozen
    assert all(np.abs(found[name] - kept[name]).max() < 0.1 for name in found)
